"""A client of the stand-in for the Messages API, with nothing but ``http.client``.  Callers: its tests."""

import http.client
import json
from typing import Any

from simulator.messages_api import MessagesApi

KEY = {"x-api-key": "dummy-key"}
DEADLINE_S = 10.0
Json = dict[str, Any]


def body(text: str, **fields: Any) -> Json:
    messages = [{"role": "user", "content": text}]
    return {"model": "claude-sonnet-5-5", "max_tokens": 1000, "messages": messages, **fields}


class Answer:
    """One answer, read to its end; ``broken`` when it broke off."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        self.broken = False
        try:
            self.raw = response.read()
        except http.client.IncompleteRead as error:
            self.raw, self.broken = error.partial, True

    @property
    def json(self) -> Json:
        value: Json = json.loads(self.raw)
        return value

    @property
    def listed(self) -> list[Json]:
        value: list[Json] = json.loads(self.raw)
        return value

    @property
    def events(self) -> list[Json]:
        """The data of every event, each checked to be named as its ``type``."""
        found = []
        for block in self.raw.decode().split("\n\n")[:-1]:
            name, data = block.split("\n")
            found.append(json.loads(data.removeprefix("data: ")))
            assert name == f"event: {found[-1]['type']}"
        return found

    @property
    def text(self) -> str:
        deltas = [event["delta"] for event in self.events if event["type"] == "content_block_delta"]
        return "".join(delta.get("text", "") for delta in deltas)


class Client:
    """One kept-alive connection."""

    def __init__(self, api: MessagesApi) -> None:
        self.http = http.client.HTTPConnection(api.host, api.port, timeout=DEADLINE_S)

    def call(self, method: str, path: str, data: Any = None, headers: Json | None = None) -> Answer:
        payload = data if isinstance(data, bytes) or data is None else json.dumps(data).encode()
        self.http.request(method, path, payload, KEY if headers is None else headers)
        return Answer(self.http.getresponse())

    def post(self, data: Any, headers: Json | None = None) -> Answer:
        return self.call("POST", "/v1/messages", data, headers)

    def stream(self, text: str, **fields: Any) -> Answer:
        return self.post(body(text, stream=True, **fields))
