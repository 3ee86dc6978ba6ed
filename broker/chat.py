"""``broker chat``: talk to a broker from a terminal.  A client, not part of the server; it may import websockets.

Owner: ``broker.__main__``.  Each line of input is a message.  Ctrl-C interrupts the running turn, and ends the program
when none runs.  A lost connection is taken up again with jitter, by session id, epoch and last seq; what was sent and
not accepted is sent again under the same id.  With input from a pipe it ends after the last answer.
"""

import os
import random
import re
import signal
import sys
import threading
import uuid
from collections import deque
from contextlib import suppress
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

import anyio
import msgspec
from anyio import from_thread, lowlevel
from anyio.streams.memory import MemoryObjectSendStream
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI

from broker.errors import EXIT_FAILURE, EXIT_OK

FIRST_BACKOFF_S, LAST_BACKOFF_S, MAX_ATTEMPTS = 0.5, 20.0, 30
COMMANDING: Final = r"[\x00-\x08\x0b-\x1f\x7f-\x9f]"
COME_BACK: Final = frozenset({1001, 1006, 1011, 1012, *range(4000, 4500)})
CREDENTIAL_VARIABLES: Final = ("CLAUDE_CODE_OAUTH_TOKEN", "ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN")
Frame = dict[str, Any]


def talk(url: str, token: str | None, session: str | None, credential_from: str | None, options: Frame) -> int:
    """Run the client to its end and return the exit code: 0, or 1 when the broker cannot be reached or refuses."""
    given = {name: value for name, value in options.items() if value is not None}
    if credential_from is not None:
        if credential_from not in CREDENTIAL_VARIABLES or not os.environ.get(credential_from):
            say(f"no credential in the variable {credential_from} (known: {', '.join(CREDENTIAL_VARIABLES)})")
            return EXIT_FAILURE
        kind = credential_from.lower().removeprefix("claude_code_").removeprefix("anthropic_")
        given["credentials"] = {kind: os.environ[credential_from]}
    return anyio.run(Chat(full_url(url), token, session, given).run)


def full_url(url: str) -> str:
    """Complete ``HOST:PORT`` or ``http://HOST:PORT/`` to the address of the chat endpoint."""
    parts = urlsplit(re.sub("^http", "ws", url if "://" in url else f"ws://{url}"))
    return urlunsplit(parts._replace(path=parts.path if parts.path.strip("/") else "/v1/chat/ws"))


def show(text: str) -> None:
    """A piece of the conversation, without what could command a terminal."""
    print(re.sub(COMMANDING, "", text), end="", flush=True)


def say(text: str) -> None:
    """A note about the conversation, beside its text."""
    if text:
        print(re.sub(COMMANDING, "", text), file=sys.stderr, flush=True)


class Chat:
    """One conversation, across reconnects."""

    def __init__(self, url: str, token: str | None, session: str | None, options: Frame) -> None:
        self._url, self._options, self._instance = url, options, uuid.uuid4().hex
        self._headers = {"Authorization": f"Bearer {token}"} if token else None
        self._session: Frame = {"mode": "open", "id": session} if session else {"mode": "new"}
        self._socket: ClientConnection | None = None
        self._start = self._asked = ""
        self._attempt = self._code = self._read_to = 0
        self._unaccepted: dict[str, Frame] = {}
        self._unfinished: set[str] = set()
        self._prompts: deque[Frame] = deque()
        self._is_interrupting = self._is_input_over = False

    async def run(self) -> int:
        """Talk until the end of input, Ctrl-C while nothing runs, or a final refusal."""
        with anyio.CancelScope() as self._scope:
            async with anyio.create_task_group() as group:
                group.start_soon(self._watch_keys)
                group.start_soon(self._read_input)
                await self._stay_connected()
        return self._code

    def _end(self, code: int, note: str = "") -> None:
        say(note)
        self._code = code
        self._scope.cancel()

    async def _stay_connected(self) -> None:
        while self._attempt < MAX_ATTEMPTS:
            try:
                await self._connect()
            except ConnectionClosed as closed:
                code, reason = (closed.rcvd.code, closed.rcvd.reason) if closed.rcvd is not None else (1006, "")
                if code not in COME_BACK:
                    return self._end(EXIT_OK if code == 1000 else EXIT_FAILURE, f"closed: {code} {reason}")
            except InvalidStatus as error:
                if error.response.status_code not in (429, 502, 503, 504):
                    return self._end(EXIT_FAILURE, f"refused: HTTP {error.response.status_code}")
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                return self._end(EXIT_FAILURE, "this is no broker: it sent what is not JSON")
            except (OSError, InvalidHandshake, InvalidURI) as error:
                if not self._start:
                    return self._end(EXIT_FAILURE, f"cannot connect to {self._url}: {error}")
            self._socket = None
            wait_s = random.uniform(0, min(LAST_BACKOFF_S, FIRST_BACKOFF_S * 2**self._attempt))
            self._attempt += 1
            say(f"not connected, next attempt in {wait_s:.1f} s")
            await anyio.sleep(wait_s)
        self._end(EXIT_FAILURE, "gave up")

    async def _connect(self) -> None:
        client = {"name": "broker-chat", "instance": self._instance}
        hello = {"type": "broker.hello", "client": client, "session": self._session, "options": self._options}
        settings: Frame = {"max_size": 2**25, "max_queue": None, "compression": None}
        settings |= {"subprotocols": ["broker.v1"], "additional_headers": self._headers}
        async with connect(self._url, **settings) as socket:
            await socket.send(msgspec.json.encode(hello), text=True)
            while True:
                await self._take(msgspec.json.decode(await socket.recv()), socket)

    async def _send(self, frame: Frame) -> None:
        """Send, or leave it: after a reconnect messages are sent again and prompts are asked again."""
        with suppress(ConnectionClosed):
            if self._socket is not None:
                await self._socket.send(msgspec.json.encode(frame), text=True)

    async def _take(self, frame: Frame, socket: ClientConnection) -> None:
        if (seq := frame.get("seq")) is not None:
            if seq <= self._session.get("last_seq", 0):
                return
            self._session["last_seq"] = seq
        match frame:
            case {"type": "broker.welcome"}:
                await self._welcomed(frame, socket)
            case {"type": "broker.accepted", "id": str(message_id), "outcome": outcome}:
                self._unaccepted.pop(message_id, None)
                if outcome:
                    self._finished(message_id)
            case {"type": "stream_event", "event": {"delta": {"type": "text_delta", "text": str(text)}}}:
                show(text if not frame.get("parent_tool_use_id") else "")
            case {"type": "stream_event", "event": {"content_block": {"type": "tool_use", "name": str(name)}}}:
                show(f"\n[{name}]\n")
            case {"type": "control_request", "request": {"subtype": "can_use_tool"}}:
                self._prompts.append(frame)
                await self._ask()
            case {"type": "broker.request_resolved", "request_id": request_id}:
                self._prompts = deque(prompt for prompt in self._prompts if prompt["request_id"] != request_id)
                await self._ask()
            case {"type": "broker.turn_completed"}:
                ttft = "no token" if frame["ttft_ms"] is None else f"first token {frame['ttft_ms']:.0f} ms"
                end = frame["error"] or ("stopped" if frame["stopped"] else "")
                self._finished(frame["id"], *filter(None, [self._start, ttft, f"{frame['duration_ms']:.0f} ms", end]))
            case {"type": "broker.turn_failed"}:
                self._finished(frame["id"], "failed", frame["reason"], frame["detail"] or "", frame["applied"])
            case {"type": "broker.error"}:
                say(f"error: {frame['code']}: {frame['message']}")
                if self._unaccepted.pop(frame["ref"] or "", None):
                    self._finished(frame["ref"])
            case {"type": "broker.waiting"}:
                say(f"waiting for a process, place {frame['position']} ({frame['reason']})")
            case _:
                pass
        if seq == self._read_to:
            self._finished(None)

    async def _welcomed(self, frame: Frame, socket: ClientConnection) -> None:
        epoch, head = self._session.get("epoch"), frame["head_seq"]
        # Without an epoch everything so far is left out; a new log is read from its beginning.
        last_seq = head if epoch is None else min(head, self._session["last_seq"]) if epoch == frame["epoch"] else 0
        self._session = {"mode": "resume", "id": frame["session_id"], "epoch": frame["epoch"], "last_seq": last_seq}
        self._start, self._attempt, self._socket, self._read_to = frame["start"] or "lazy", 0, socket, head
        if epoch not in (None, frame["epoch"]):  # the end of what the old log told of will not come
            self._unfinished &= {*self._unaccepted, *frame["queued"], (frame["turn"] or {}).get("id", "")}
        lost = f", output lost: {frame['lost']['reason']}" if frame["lost"] else ""
        say(f"session {frame['session_id']} ({self._start}, ready in {frame['ready_ms']:.0f} ms{lost})")
        self._prompts, self._asked = deque(frame["pending"]), ""
        await self._ask()
        for message in list(self._unaccepted.values()):
            await self._send(message)
        self._finished(None)

    def _finished(self, message_id: str | None, *notes: str) -> None:
        show("\n" if notes else "")
        say(" · ".join(notes))
        self._unfinished.discard(message_id or "")
        self._is_interrupting = False
        if self._is_input_over and not self._unfinished and self._start and self._session["last_seq"] >= self._read_to:
            self._end(EXIT_OK)

    async def _ask(self) -> None:
        """Ask about the oldest prompt, once; when nobody can answer any more the answer is no."""
        if self._prompts and self._asked != self._prompts[0]["request_id"]:
            self._asked, request = self._prompts[0]["request_id"], self._prompts[0]["request"]
            say(f"\n{request['tool_name']} {msgspec.json.encode(request['input']).decode()}\nallow? [y/N]")
        if self._prompts and self._is_input_over:
            await self._line("no")

    async def _line(self, line: str) -> None:
        if self._prompts:
            prompt = self._prompts.popleft()
            answer: Frame = {"behavior": "deny", "message": "denied by the user"}
            if line.strip().lower() in ("y", "yes"):
                answer = {"behavior": "allow", "updatedInput": prompt["request"]["input"]}
            answer = {"subtype": "success", "request_id": prompt["request_id"], "response": answer}
            await self._send({"type": "control_response", "response": answer})
            await self._ask()
        elif line.strip():
            message = {"type": "user_message", "id": str(uuid.uuid4()), "content": line}
            self._unaccepted[message["id"]] = message
            self._unfinished.add(message["id"])
            await self._send(message)

    async def _read_input(self) -> None:
        feed, lines = anyio.create_memory_object_stream[str](64)
        # A daemon thread that reads the descriptor itself: a blocked read of sys.stdin would hold up the exit.
        threading.Thread(target=_read_lines, args=(feed, lowlevel.current_token()), daemon=True).start()
        async with lines:
            async for line in lines:
                await self._line(line)
        self._is_input_over = True
        await self._ask()
        self._finished(None)

    async def _watch_keys(self) -> None:
        with anyio.open_signal_receiver(signal.SIGINT) as signals:
            async for _ in signals:
                if not self._unfinished or self._is_interrupting:
                    self._end(EXIT_OK)
                self._is_interrupting, body = True, {"subtype": "interrupt", "cancel_queued": True}
                await self._send({"type": "control_request", "request_id": uuid.uuid4().hex, "request": body})


def _read_lines(feed: MemoryObjectSendStream[str], token: lowlevel.EventLoopToken) -> None:
    rest = b""
    try:
        while chunk := os.read(sys.stdin.fileno(), 65536):
            *whole, rest = (rest + chunk).split(b"\n")
            for line in whole:
                from_thread.run(feed.send, line.decode(errors="replace"), token=token)
        from_thread.run(feed.send, rest.decode(errors="replace"), token=token)
        from_thread.run_sync(feed.close, token=token)
    except (anyio.RunFinishedError, anyio.BrokenResourceError, anyio.ClosedResourceError):
        return  # the conversation ended first
