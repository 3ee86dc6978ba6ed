"""What the stand-in for the Messages API saw: a bounded list of requests, for tests and for people.

Bounds: the last 5,000 requests and the last 256 MiB of bodies, whichever is less; the oldest fall out.  Bodies are kept
as bytes and read only when somebody asks, so that recording costs a request next to nothing.

Owner: the one ``MessagesApi``; its connection threads add, ``GET /_requests`` and tests read.
"""

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from simulator import api_reply
from simulator.api_http import Request

MAX_REQUESTS: Final = 5_000
MAX_BYTES: Final = 256 * 1024 * 1024
_KEPT_HEADERS: Final = ("authorization", "x-api-key", "anthropic-beta", "user-agent", "x-claude-code-session-id")


class Credential(NamedTuple):
    """Who pays: ``kind`` is ``api_key`` (x-api-key), ``oauth`` or ``auth_token`` (both bearer) or ``none``."""

    kind: str
    value: str


def credential(headers: Mapping[str, str]) -> Credential:
    """The credential of a request; a bearer token is an OAuth one if the request says so in ``anthropic-beta``."""
    bearer = headers.get("authorization", "")
    if bearer[:7].lower() == "bearer ":
        kind = "oauth" if "oauth-" in headers.get("anthropic-beta", "") else "auth_token"
        return Credential(kind, bearer[7:].strip())
    key = headers.get("x-api-key", "")
    return Credential("api_key", key) if key else Credential("none", "")


def _effort(body: Mapping[str, Any]) -> Any:
    """How hard the model shall try: a word, None where the request says nothing."""
    config = body.get("output_config")
    return config.get("effort") if isinstance(config, dict) else None


class Entry:
    """One request as it came, and how its answer went: the connection's thread fills in the second group."""

    def __init__(self, number: int, request: Request) -> None:
        self.number = number
        self.time = time.time()
        self.request = request
        self.credential = credential(request.headers)
        self.status = 0
        self.deltas = 0
        self.ended = "running"
        """``running``, ``complete``, ``cut`` (asked for) or ``client_gone``."""

    def shown(self) -> dict[str, Any]:
        """The entry as ``GET /_requests`` lists it; values that the body does not have are None or empty."""
        body = self._body()
        messages = body.get("messages")
        tools = body.get("tools")
        return {
            "n": self.number, "time": self.time, "method": self.request.method, "path": self.request.path,
            "query": self.request.query, "credential_kind": self.credential.kind, "credential": self.credential.value,
            "headers": {name: self.request.headers[name] for name in _KEPT_HEADERS if name in self.request.headers},
            "model": body.get("model"), "system": api_reply.system_text(body.get("system")),
            "messages": messages,
            "user_texts": list(api_reply.read(messages).texts) if isinstance(messages, list) else [],
            "tools": [tool.get("name") for tool in tools if isinstance(tool, dict)] if isinstance(tools, list) else [],
            "betas": self.request.headers.get("anthropic-beta", "").split(","), "effort": _effort(body),
            "max_tokens": body.get("max_tokens"), "thinking": body.get("thinking"), "stream": bool(body.get("stream")),
            "status": self.status, "deltas": self.deltas, "ended": self.ended,
        }  # fmt: skip

    def _body(self) -> dict[str, Any]:
        try:
            body = json.loads(self.request.body)
        except (ValueError, RecursionError):
            return {}
        return body if isinstance(body, dict) else {}


class Record:
    """The bounded list.  Safe from any thread."""

    def __init__(self) -> None:
        self._entries: deque[Entry] = deque()
        self._bytes = 0
        self._number = 0
        self._changed = threading.Condition()

    def add(self, request: Request) -> Entry:
        with self._changed:
            self._number += 1
            entry = Entry(self._number, request)
            self._entries.append(entry)
            self._bytes += len(request.body)
            while len(self._entries) > MAX_REQUESTS or (self._bytes > MAX_BYTES and len(self._entries) > 1):
                self._bytes -= len(self._entries.popleft().request.body)
            self._changed.notify_all()
        return entry

    def finish(self, entry: Entry, ended: str) -> None:
        with self._changed:
            entry.ended = ended
            self._changed.notify_all()

    def clear(self) -> None:
        with self._changed:
            self._entries.clear()
            self._bytes = 0

    def list(self, since: int = 0) -> list[dict[str, Any]]:
        """Every entry with a number above ``since``, oldest first."""
        with self._changed:
            entries = [entry for entry in self._entries if entry.number > since]
        return [entry.shown() for entry in entries]

    def wait(self, wanted: Callable[[dict[str, Any]], bool], deadline_s: float) -> dict[str, Any]:
        """The first entry that satisfies ``wanted``; raises ``TimeoutError`` when none does within ``deadline_s``."""
        end = time.monotonic() + deadline_s
        with self._changed:
            while True:
                for entry in self._entries:
                    shown = entry.shown()
                    if wanted(shown):
                        return shown
                left = end - time.monotonic()
                if left <= 0:
                    raise TimeoutError(f"no such request within {deadline_s} s; {len(self._entries)} others were seen")
                self._changed.wait(left)
