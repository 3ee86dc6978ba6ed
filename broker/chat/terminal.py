"""``broker chat``: talk to a broker from a terminal.  A client, not part of the server; it may import websockets.

Owner: ``broker.__main__``.  Each line of input is a message, or a command (``broker.chat.commands``).  Ctrl-C
interrupts the running turn, and ends the program when none runs.  A lost connection is taken up again with jitter, by
session id, epoch and last seq; what was sent and not accepted is sent again under the same id.  With input from a pipe
it ends after the last answer.  Over 300 lines because every frame and every line changes the one conversation.
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

from broker.chat.commands import Local, Mistake, Wish, help_text, message, wish_of
from broker.chat.notes import note_of
from broker.chat.prompts import answer, is_question, question
from broker.errors import EXIT_FAILURE, EXIT_OK

FIRST_BACKOFF_S, LAST_BACKOFF_S, MAX_ATTEMPTS = 0.5, 20.0, 30
COMMANDING: Final = r"[\x00-\x08\x0b-\x1f\x7f-\x9f]"
COME_BACK: Final = frozenset({1001, 1006, 1011, 1012, *range(4000, 4500)})
NO_BROKER: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, KeyError, TypeError, AttributeError)
"""What taking apart a frame of something that is no broker can raise."""
CREDENTIAL_VARIABLES: Final = ("CLAUDE_CODE_OAUTH_TOKEN", "ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN")
Frame = dict[str, Any]


def talk(
    url: str, token: str | None, session: Frame, credential_from: str | None, options: Frame, *, observes: bool = False
) -> int:
    """Run the client to its end and return the exit code: 0, or 1 when the broker cannot be reached or refuses.

    ``session``: hello's (``mode``, ``id``); ``options``: hello's, those that are None left out.
    """
    given = {name: value for name, value in options.items() if value is not None}
    try:
        if credential_from is not None:
            given["credentials"] = credential(credential_from)
    except Mistake as mistake:
        say(str(mistake))
        return EXIT_FAILURE
    return anyio.run(Chat(full_url(url), token, session, given, observes=observes).run)


def credential(variable: str) -> Frame:
    """The credential in an environment variable, as an option.  Raises ``Mistake``."""
    if variable not in CREDENTIAL_VARIABLES or not os.environ.get(variable):
        raise Mistake(f"no credential in the variable {variable} (known: {', '.join(CREDENTIAL_VARIABLES)})")
    kind = variable.lower().removeprefix("claude_code_").removeprefix("anthropic_")
    return {kind: os.environ[variable]}


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

    def __init__(self, url: str, token: str | None, session: Frame, options: Frame, *, observes: bool) -> None:
        self._url, self._options, self._instance = url, options, uuid.uuid4().hex
        self._headers = {"Authorization": f"Bearer {token}"} if token else None
        self._session = session
        self._role = "observer" if observes else "controller"
        self._socket: ClientConnection | None = None
        self._start = self._asked = ""
        self._attempt = self._code = self._read_to = 0
        self._unaccepted: dict[str, Frame] = {}
        self._unfinished: set[str] = set()
        self._unanswered: list[str] = []
        self._up = anyio.Event()
        self._prompts: deque[Frame] = deque()
        self._is_interrupting = self._is_input_over = self._is_forking = False

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
                if self._is_forking:  # closed by ourselves
                    self._is_forking = False
                    continue
                code, reason = (closed.rcvd.code, closed.rcvd.reason) if closed.rcvd is not None else (1006, "")
                if code not in COME_BACK:
                    return self._end(EXIT_OK if code == 1000 else EXIT_FAILURE, f"closed: {code} {reason}")
            except InvalidStatus as error:
                if error.response.status_code not in (429, 502, 503, 504):
                    return self._end(EXIT_FAILURE, f"refused: HTTP {error.response.status_code}")
            except NO_BROKER:
                return self._end(EXIT_FAILURE, "this is no broker: it sent what no broker sends")
            except (OSError, InvalidHandshake, InvalidURI) as error:
                if not self._start:
                    return self._end(EXIT_FAILURE, f"cannot connect to {self._url}: {error}")
            self._socket, self._up = None, anyio.Event()
            wait_s = random.uniform(0, min(LAST_BACKOFF_S, FIRST_BACKOFF_S * 2**self._attempt))
            self._attempt += 1
            say(f"not connected, next attempt in {wait_s:.1f} s")
            await anyio.sleep(wait_s)
        self._end(EXIT_FAILURE, "gave up")

    async def _connect(self) -> None:
        client = {"name": "broker-chat", "instance": self._instance}
        hello = {"type": "broker.hello", "client": client, "session": self._session, "role": self._role}
        hello |= {"options": self._options} if self._options else {}
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
            case {"type": "control_request"} if is_question(frame) and self._role == "controller":
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
            case _:
                say(note_of(frame, self._instance))
        self._answered(frame)
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
        ready = "no process yet" if frame["ready_ms"] is None else f"ready in {frame['ready_ms']:.0f} ms"
        say(f"session {frame['session_id']} ({self._start}, {ready}{lost})")
        pending = frame["pending"] if self._role == "controller" else []
        self._unanswered.clear()  # nobody replies to what an earlier connection asked
        self._prompts, self._asked = deque(prompt for prompt in pending if is_question(prompt)), ""
        await self._ask()
        self._up.set()
        for unaccepted in list(self._unaccepted.values()):
            await self._send(unaccepted)
        self._finished(None)

    def _finished(self, message_id: str | None, *notes: str) -> None:
        show("\n" if notes else "")
        say(" · ".join(notes))
        self._unfinished.discard(message_id or "")
        self._is_interrupting = False
        self._leave_when_done()

    def _leave_when_done(self) -> None:
        """At the end of input, once every message and every request has had its answer."""
        is_done = self._is_input_over and not self._unfinished and not self._unanswered and self._start
        if is_done and self._session["last_seq"] >= self._read_to:
            self._end(EXIT_OK)

    async def _ask(self) -> None:
        """Ask about the oldest prompt, once; when nobody can answer any more the answer is no."""
        if self._prompts and self._asked != self._prompts[0]["request_id"]:
            self._asked = self._prompts[0]["request_id"]
            say(f"\n{question(self._prompts[0])}")
        if self._prompts and self._is_input_over:
            await self._line("")

    async def _line(self, line: str) -> None:
        if self._prompts:
            await self._answer(line)
        elif line.startswith("/") and not line.startswith("//"):
            try:
                await self._wish(wish_of(line))
            except Mistake as mistake:
                say(str(mistake))
        elif line.strip():
            await self._wish(message(line.removeprefix("/") if line.startswith("//") else line))

    async def _answer(self, line: str) -> None:
        try:
            frame = answer(self._prompts[0], line)
        except ValueError as error:
            return say(str(error))
        self._prompts.popleft()
        await self._send(frame)
        await self._ask()

    async def _wish(self, wish: Wish) -> None:
        """Send what a line asks for; a message is kept until it is accepted, a request gets its id."""
        match wish:
            case Local(name="help"):
                say(help_text())
            case Local(name="quit"):
                self._end(EXIT_OK)
            case Local(name="fork"):
                if self._socket is not None and self._start:
                    self._session, self._is_forking = {"mode": "fork", "id": self._session["id"]}, True
                    self._up = anyio.Event()
                    self._unaccepted.clear()
                    self._unfinished.clear()  # what still runs ends in the parent
                    await self._socket.close()
            case Local(name="credential", argument=variable):
                request = {"subtype": "set_credentials", "credentials": credential(variable)}
                await self._wish({"type": "control_request", "request": request})
            case Local():
                raise Mistake(f"{wish.name}: not here")
            case {"type": "user_message"}:
                message_id = str(uuid.uuid4())
                self._unaccepted[message_id] = sent = {**wish, "id": message_id}
                self._unfinished.add(message_id)
                await self._send(sent)
            case {"type": "control_request"}:
                request_id = str(wish.get("request_id", uuid.uuid4().hex))
                self._unanswered.append(request_id)
                await self._send({**wish, "request_id": request_id})
            case _:
                self._unanswered += ["broker.history"] * (wish["type"] == "broker.history")
                await self._send(wish)

    def _answered(self, frame: Frame) -> None:
        """A reply to a request of this client, or its refusal: at the end of input the program waits for them too."""
        reply = frame.get("response") or {}
        asked = frame.get("ref") or (reply.get("request_id") if frame["type"] == "control_response" else frame["type"])
        if asked in self._unanswered:
            self._unanswered.remove(asked)
            self._leave_when_done()

    async def _read_input(self) -> None:
        feed, lines = anyio.create_memory_object_stream[str](64)
        # A daemon thread that reads the descriptor itself: a blocked read of sys.stdin would hold up the exit.
        threading.Thread(target=_read_lines, args=(feed, lowlevel.current_token()), daemon=True).start()
        async with lines:
            async for line in lines:
                await self._up.wait()  # what is typed while nobody listens is sent then
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
