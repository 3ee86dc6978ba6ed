"""One request to the stand-in for the Messages API and its answer: routes, credentials, pace, cuts.

Owner: the connection's thread in ``simulator.messages_api``, its only caller.
"""

import json
from typing import Any, Final

from simulator import api_reply
from simulator.api_http import Connection, Gone
from simulator.api_record import Entry
from simulator.api_reply import Event, Refusal, Reply
from simulator.credentials import is_bad

_LONG_AGO: Final = "2025-01-01T00:00:00Z"
_BROKEN_ANSWER: Final = b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 999\r\n\r\n{"id":'


class Exchange:
    """One request and its answer.  Raises ``Gone`` when the connection must end, cut streams included."""

    def __init__(self, connection: Connection, entry: Entry) -> None:
        self._connection = connection
        self._entry = entry
        self._request = entry.request
        self._request_id = api_reply.unique("req_")

    def run(self) -> None:
        routes = {
            ("POST", "/v1/messages"): self._messages,
            ("POST", "/v1/messages/count_tokens"): self._count_tokens,
            ("GET", "/v1/models"): self._models,
        }
        route = routes.get((self._request.method, self._request.path))
        if self._request.path == "/" and self._request.method in ("HEAD", "GET"):
            self._tell(200, {"simulator": "messages_api"})
        elif route is None:
            self._refuse(Refusal(404, f"{self._request.method} {self._request.path} does not exist"))
        elif self._entry.credential.kind == "none":
            self._refuse(Refusal(401, "x-api-key header is required"))
        elif is_bad(self._entry.credential.value):
            self._refuse(api_reply.refuse_status(401))
        else:
            route()

    def _messages(self) -> None:
        body = self._body()
        reply = api_reply.plan(body) if not isinstance(body, Refusal) else body
        if isinstance(reply, Refusal):
            self._refuse(reply)
            return
        if reply.directives.ttft_ms > 0:
            self._connection.pause(reply.directives.ttft_ms / 1000)
        if isinstance(body, dict) and body.get("stream"):
            self._stream(reply)
        else:
            self._whole(reply)

    def _stream(self, reply: Reply) -> None:
        self._entry.status = 200
        self._connection.begin_stream({"request-id": self._request_id})
        first = True
        for event in api_reply.events(reply):
            if event.waits and not first and reply.directives.itl_ms > 0:
                self._connection.pause(reply.directives.itl_ms / 1000)
            first = first and not event.waits
            self._cut_if_due(reply, event)
            self._connection.send_event(event.kind, event.data)
            self._entry.deltas += event.counts
        self._connection.end_stream()

    def _cut_if_due(self, reply: Reply, event: Event) -> None:
        limit = reply.directives.cut_after
        # Also at the block's end, for a cut behind the last delta.
        if limit is not None and self._entry.deltas >= limit and (event.counts or event.kind == "content_block_stop"):
            self._entry.ended = "cut"
            raise Gone

    def _whole(self, reply: Reply) -> None:
        if reply.directives.cut_after is not None:
            self._entry.ended = "cut"
            self._connection.send_raw(_BROKEN_ANSWER)
            raise Gone
        self._tell(200, api_reply.message(reply))

    def _count_tokens(self) -> None:
        body = self._body()
        refusal = body if isinstance(body, Refusal) else api_reply.refuse_model(body.get("model"))
        if refusal is not None:
            self._refuse(refusal)
        elif isinstance(body, dict):
            self._tell(200, {"input_tokens": api_reply.count_tokens(body)})

    def _models(self) -> None:
        names = api_reply.MODELS
        models = [{"type": "model", "id": name, "display_name": name, "created_at": _LONG_AGO} for name in names]
        self._tell(200, {"data": models, "has_more": False, "first_id": names[0], "last_id": names[-1]})

    def _body(self) -> dict[str, Any] | Refusal:
        try:
            body = json.loads(self._request.body)
        except (ValueError, RecursionError) as error:
            return Refusal(400, f"The request body is not valid JSON: {error}")
        return body if isinstance(body, dict) else Refusal(400, "The request body is not a JSON object")

    def _refuse(self, refusal: Refusal) -> None:
        self._tell(refusal.status, refusal.body(self._request_id))

    def _tell(self, status: int, body: dict[str, Any]) -> None:
        self._entry.status = status
        self._connection.answer(status, body, {"request-id": self._request_id}, bodiless=self._request.method == "HEAD")
