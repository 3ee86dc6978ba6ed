"""``broker chat``: talk to a broker from a terminal.  A client, not part of the server; it may import websockets.

Owner: ``broker.__main__``, command ``chat``.  Each line of input is a message.  Ctrl-C interrupts the running turn, and
ends the program when none runs.  A lost connection is taken up again with jitter, by session id, epoch and last seq;
what was sent and not accepted is sent again under the same id.  With input from a pipe it ends after the last answer.
"""

import os
import random
import re
import signal
import sys
import threading
import uuid
from collections import deque
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

import anyio
import anyio.from_thread
import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI

from broker.errors import EXIT_FAILURE, EXIT_OK

MAX_MESSAGE_BYTES: Final = 32 * 2**20
MAX_PENDING_LINES: Final = 64
BACKOFF_S: Final = (0.5, 20.0)
MAX_ATTEMPTS: Final = 30
COME_BACK: Final = frozenset({1001, 1006, 1011, 1012, *range(4000, 4500)})
RETRY_STATUS: Final = frozenset({429, 502, 503, 504})
CREDENTIAL_KINDS: Final = {
    "CLAUDE_CODE_OAUTH_TOKEN": "oauth_token", "ANTHROPIC_API_KEY": "api_key", "ANTHROPIC_AUTH_TOKEN": "auth_token",
}  # fmt: skip


def talk(
    url: str, *, token: str | None = None, session: str | None = None, model: str | None = None,
    system_prompt: str | None = None, credential_from: str | None = None,
) -> int:  # fmt: skip
    """Run the client to its end and return the exit code: 0, or 1 when the broker cannot be reached or refuses."""
    options: dict[str, Any] = {"model": model, "system_prompt": system_prompt}
    if credential_from is not None:
        kind, value = CREDENTIAL_KINDS.get(credential_from), os.environ.get(credential_from)
        if kind is None or not value:
            say(f"no credential in the variable {credential_from} (known: {', '.join(CREDENTIAL_KINDS)})")
            return EXIT_FAILURE
        options["credentials"] = {kind: value}
    options = {name: value for name, value in options.items() if value is not None}
    return anyio.run(Chat(full_url(url), token, session, options).run)


def full_url(url: str) -> str:
    """Complete ``HOST:PORT`` or ``http://HOST:PORT/`` to the address of the chat endpoint."""
    parts = urlsplit(url if "://" in url else f"ws://{url}")
    scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
    return urlunsplit((scheme, parts.netloc, parts.path if parts.path.strip("/") else "/v1/chat/ws", parts.query, ""))


def say(text: str) -> None:
    """A note about the conversation, beside its text."""
    print(f"\033[2m{text}\033[0m" if sys.stderr.isatty() else text, file=sys.stderr, flush=True)


def show(text: str) -> None:
    """A piece of the conversation; what could command the terminal is left out."""
    sys.stdout.write(re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "", text))
    sys.stdout.flush()


class Chat:
    """One conversation, across reconnects."""

    def __init__(self, url: str, token: str | None, session: str | None, options: dict[str, Any]) -> None:
        self._url, self._token, self._options = url, token, options
        self._session: dict[str, Any] = {"mode": "open", "id": session} if session else {"mode": "new"}
        self._instance = uuid.uuid4().hex
        self._socket: ClientConnection | None = None
        self._start = ""
        self._unaccepted: dict[str, dict[str, Any]] = {}
        self._unfinished: set[str] = set()
        self._prompts: deque[dict[str, Any]] = deque()
        self._is_interrupting = False
        self._is_ended = False
        self._scope = anyio.CancelScope()
        self._code = EXIT_OK

    async def run(self) -> int:
        """Talk until the end of input, Ctrl-C while nothing runs, or a final refusal."""
        with self._scope:
            async with anyio.create_task_group() as group:
                group.start_soon(self._watch_keys)
                group.start_soon(self._read_input)
                await self._stay_connected()
                group.cancel_scope.cancel()
        return self._code

    def _end(self, code: int, note: str = "") -> None:
        if note:
            say(note)
        self._code = code
        self._scope.cancel()

    # -- the connection --

    async def _stay_connected(self) -> None:
        attempt = 0
        while attempt < MAX_ATTEMPTS:
            try:
                headers = {"Authorization": f"Bearer {self._token}"} if self._token else None
                async with connect(
                    self._url, subprotocols=["broker.v1"], additional_headers=headers, compression=None,  # type: ignore[list-item]
                    max_size=MAX_MESSAGE_BYTES, max_queue=None,
                ) as socket:  # fmt: skip
                    await self._converse(socket)
                attempt = 0
            except ConnectionClosed as closed:
                code = closed.rcvd.code if closed.rcvd is not None else 1006
                if code not in COME_BACK:
                    reason = closed.rcvd.reason if closed.rcvd is not None else ""
                    return self._end(EXIT_OK if code == 1000 else EXIT_FAILURE, f"closed: {code} {reason}")
                attempt = 0 if self._start else attempt
            except InvalidStatus as error:
                if error.response.status_code not in RETRY_STATUS:
                    return self._end(EXIT_FAILURE, f"refused: HTTP {error.response.status_code}")
            except (OSError, InvalidHandshake, InvalidURI, TimeoutError) as error:
                if not self._start:
                    return self._end(EXIT_FAILURE, f"cannot connect to {self._url}: {error}")
            self._socket = None
            wait_s = random.uniform(0, min(BACKOFF_S[1], BACKOFF_S[0] * 2**attempt))
            attempt += 1
            say(f"not connected, next attempt in {wait_s:.1f} s")
            await anyio.sleep(wait_s)
        return self._end(EXIT_FAILURE, "gave up")

    async def _converse(self, socket: ClientConnection) -> None:
        hello = {
            "type": "broker.hello", "protocol": 1, "client": {"name": "broker-chat", "instance": self._instance},
            "session": self._session, "options": self._options,
        }  # fmt: skip
        await socket.send(msgspec.json.encode(hello), text=True)
        while True:
            await self._take(msgspec.json.decode(await socket.recv(decode=False)), socket)

    async def _send(self, frame: dict[str, Any]) -> None:
        if self._socket is not None:
            await self._socket.send(msgspec.json.encode(frame), text=True)

    # -- frames --

    async def _take(self, frame: dict[str, Any], socket: ClientConnection) -> None:
        seq = frame.get("seq")
        if seq is not None:
            if seq <= self._session.get("last_seq", 0):
                return
            self._session["last_seq"] = seq
        match frame.get("type"):
            case "broker.welcome":
                await self._welcomed(frame, socket)
            case "broker.accepted":
                self._unaccepted.pop(frame["id"], None)
                if frame.get("outcome"):
                    self._finished(frame["id"])
            case "stream_event" if not frame.get("parent_tool_use_id"):
                self._stream(frame["event"])
            case "control_request" if frame["request"].get("subtype") == "can_use_tool":
                self._prompts.append(frame)
                self._ask()
            case "broker.request_resolved":
                self._prompts = deque(p for p in self._prompts if p["request_id"] != frame["request_id"])
            case "broker.turn_completed":
                ttft = "no token" if frame["ttft_ms"] is None else f"first token {frame['ttft_ms']:.0f} ms"
                note = frame["error"] or ("stopped" if frame["stopped"] else "")
                show("\n")
                say(" · ".join(filter(None, (self._start, ttft, f"{frame['duration_ms'] / 1e3:.1f} s", note))))
                self._finished(frame["id"])
            case "broker.turn_failed":
                show("\n")
                say(f"failed: {frame['reason']} ({frame.get('detail') or 'no detail'}, applied: {frame['applied']})")
                self._finished(frame["id"])
            case "broker.error":
                say(f"error: {frame['code']}: {frame['message']}")
                if frame.get("ref") in self._unaccepted:
                    self._unaccepted.pop(frame["ref"])
                    self._finished(frame["ref"])
            case "broker.waiting":
                say(f"waiting for a process, place {frame['position']} ({frame['reason']})")

    async def _welcomed(self, frame: dict[str, Any], socket: ClientConnection) -> None:
        is_new_log = frame["epoch"] != self._session.get("epoch")
        last_seq = 0 if frame["lost"] and is_new_log else self._session.get("last_seq", frame["head_seq"])
        if is_new_log and frame["replay"] is None and frame["lost"] is None:
            last_seq = frame["head_seq"]
        self._session = {"mode": "resume", "id": frame["session_id"], "epoch": frame["epoch"], "last_seq": last_seq}
        if frame["lost"]:
            say(f"some output is lost: {frame['lost']['reason']}")
        self._start = frame["start"] or "lazy"
        say(f"session {frame['session_id']} ({self._start}, ready in {frame['ready_ms']:.0f} ms)")
        self._prompts = deque(frame["pending"])
        self._ask()
        self._socket = socket
        for message in list(self._unaccepted.values()):
            await self._send(message)

    def _stream(self, event: dict[str, Any]) -> None:
        match event:
            case {"type": "content_block_delta", "delta": {"type": "text_delta", "text": str(text)}}:
                show(text)
            case {"type": "content_block_start", "content_block": {"type": "tool_use", "name": str(name)}}:
                show(f"\n[{name}]\n")

    def _finished(self, message_id: str | None) -> None:
        self._unfinished.discard(message_id or "")
        self._is_interrupting = False
        if self._is_ended and not self._unfinished:
            self._end(EXIT_OK)

    # -- the user --

    def _ask(self) -> None:
        if self._prompts:
            request = self._prompts[0]["request"]
            show(f"\n{request['tool_name']} {msgspec.json.encode(request['input']).decode()}\n")
            say("allow? [y/N]")

    async def _line(self, line: str) -> None:
        if self._prompts:
            prompt = self._prompts.popleft()
            is_yes = line.strip().lower() in ("y", "yes")
            yes = {"behavior": "allow", "updatedInput": prompt["request"]["input"]}
            answer = yes if is_yes else {"behavior": "deny", "message": "denied by the user"}
            body = {"subtype": "success", "request_id": prompt["request_id"], "response": answer}
            await self._send({"type": "control_response", "response": body})
            self._ask()
        elif line.strip():
            message = {"type": "user_message", "id": str(uuid.uuid4()), "content": line}
            self._unaccepted[message["id"]] = message
            self._unfinished.add(message["id"])
            await self._send(message)

    async def _read_input(self) -> None:
        lines: deque[str | None] = deque()
        arrived, room = anyio.Event(), threading.BoundedSemaphore(MAX_PENDING_LINES)
        token = anyio.lowlevel.current_token()

        def take(line: str | None) -> None:
            lines.append(line)
            arrived.set()

        # A daemon thread that reads the descriptor itself: a blocked read of sys.stdin would hold up the exit.
        threading.Thread(target=_read_lines, args=(take, room, token), daemon=True).start()
        while True:
            await arrived.wait()
            arrived = anyio.Event()
            while lines:
                line = lines.popleft()
                room.release()
                if line is not None:
                    await self._line(line)
                    continue
                self._is_ended = True
                while self._prompts:
                    await self._line("no")
                if not self._unfinished:
                    self._end(EXIT_OK)

    async def _watch_keys(self) -> None:
        with anyio.open_signal_receiver(signal.SIGINT) as signals:
            async for _ in signals:
                if not self._unfinished or self._is_interrupting:
                    self._end(EXIT_OK)
                self._is_interrupting = True
                interrupt = {"subtype": "interrupt", "cancel_queued": True}
                await self._send({"type": "control_request", "request_id": uuid.uuid4().hex, "request": interrupt})


def _read_lines(take: Any, room: threading.BoundedSemaphore, token: Any) -> None:
    rest = b""
    while chunk := os.read(sys.stdin.fileno(), 65536):
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            room.acquire()
            anyio.from_thread.run_sync(take, line.decode(errors="replace"), token=token)
    for last in ([rest.decode(errors="replace")] if rest else []) + [None]:
        room.acquire()
        anyio.from_thread.run_sync(take, last, token=token)
