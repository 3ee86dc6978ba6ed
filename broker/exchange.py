"""Questions that cross the session: control requests of clients to the CLI, permission prompts of the CLI to clients.

Synchronous.  Owner: one ``broker.session.Session``, which lends it the ways out (``Outlet``).  Nothing that a client
sent reaches the CLI but by way of a typed struct that is encoded again.
"""

import time
from collections.abc import Callable
from typing import Any, Protocol

import msgspec
from msgspec import UNSET, Raw

from broker import policy
from broker.binding import Bound
from broker.config import Policy
from broker.controls import MAX_IN_FLIGHT, Asked, Controls
from broker.requests import Outcome, PendingRequests, Prompt
from protocol import cli, codec
from protocol.codes import CloseCode, ErrorCode
from protocol.controls import (
    Control,
    McpStatus,
    SetMaxThinkingTokens,
    SetModel,
    SetPermissionMode,
    decode_answer,
    decode_updates,
)
from protocol.errors import ClientError
from protocol.frames import (
    ControlReply,
    ControlReplyBody,
    ControlResponse,
    RequestResolved,
    ServerFrame,
    State,
)


class Reader(Protocol):
    """A connection, as a session sees it."""

    instance: str

    def wake(self) -> None:
        """New frames are in the log."""

    def send(self, frame: ServerFrame) -> None:
        """Queue a frame of this connection, after everything that is in the log now."""

    def close_soon(self, code: CloseCode, reason: str) -> None:
        """End the connection once what is queued has gone out."""


class Outlet(Protocol):
    """What an exchange needs of its session."""

    readers: list[Reader]

    @property
    def has_process(self) -> bool:
        """Whether a CLI is there to be asked."""

    def write(self, line: bytes) -> None:
        """Queue a line for the CLI."""

    def publish(self, frame: ServerFrame) -> int:
        """Number, log and send a session event."""

    def forward(self, line: bytes) -> int:
        """Number, log and send a line of the CLI."""

    def settled(self) -> None:
        """A prompt was closed: the clocks of the turn run again."""


class Exchange:
    """Open questions of one session, in both directions."""

    def __init__(self, outlet: Outlet, limits: Policy, permission_timeout_s: float) -> None:
        self._outlet = outlet
        self.policy = limits
        self.permission_timeout_s = permission_timeout_s
        self.bound = Bound()
        self.prompts = PendingRequests()
        self._controls = Controls()
        self._own: dict[str, Callable[[cli.Answer], None]] = {}

    # -- control requests of clients -----------------------------------------------------------------------------------

    def was_asked(self, request_id: str, reader: Reader) -> bool:
        """Whether this client instance has sent the request before: it then gets the same reply, now or when it comes,
        and nothing runs twice."""
        known = self._controls.repeat(reader.instance, request_id, time.monotonic()) if reader.instance else None
        if known is not None and known.reply is not None:
            reader.send(msgspec.json.decode(known.reply, type=ControlReply))
        return known is not None

    def answer_now(self, request_id: str, control: Control, reader: Reader, response: dict[str, Any]) -> None:
        """Reply to a request that the broker carries out by itself."""
        frame = ControlReply(ControlReplyBody("success", request_id, response))
        reader.send(frame)
        self._controls.settled(reader.instance, request_id, control, codec.encode_server(frame), time.monotonic())

    def control(self, request_id: str, control: Control, reader: Reader) -> None:
        """Carry out a client's control request; the reply goes to ``reader``.  Raises ``ClientError``."""
        now = time.monotonic()
        if isinstance(control, SetPermissionMode):
            policy.check_mode(control.mode, self.policy, request_id)
        if not self._outlet.has_process:
            reader.send(ControlReply(ControlReplyBody("error", request_id, error="cli_exited")))
            return
        asked = self._controls.ask(reader, reader.instance, request_id, control, now)
        if asked is None:
            raise ClientError(ErrorCode.RATE_LIMITED, f"{MAX_IN_FLIGHT} control requests are in flight", ref=request_id)
        self._outlet.write(cli.control_line(asked[0], control))

    def expect(self, request_id: str, on_answer: Callable[[cli.Answer], None]) -> None:
        """Have ``on_answer`` called with the CLI's answer to one of the broker's own requests."""
        self._own[request_id] = on_answer

    def on_answer(self, line: bytes) -> None:
        answer = cli.decode_answer_line(line)
        if answer is None:
            return
        own = self._own.pop(answer.request_id, None)
        if own is not None:
            own(answer)
            return
        asked = self._controls.answered(answer)
        if asked is None:
            return
        if answer.error is not None:
            self._reply(asked, ControlReplyBody("error", asked.request_id, error=answer.error[:512]))
            return
        self._reply(asked, ControlReplyBody("success", asked.request_id, _shown_answer(asked.control, answer.response)))
        self._apply(asked.control)

    def _apply(self, control: Control) -> None:
        """A control request succeeded: remember it for the next process and tell everybody."""
        match control:
            case SetModel(model=model):
                self.bound.model = model
                self._outlet.publish(State(model=model))
            case SetPermissionMode(mode=mode):
                self.bound.permission_mode = mode
                self._outlet.publish(State(permission_mode=mode))
            case SetMaxThinkingTokens(max_thinking_tokens=tokens):
                self.bound.max_thinking_tokens = tokens
                self._outlet.publish(State(max_thinking_tokens=tokens))
            case _:
                pass

    def _reply(self, asked: Asked, body: ControlReplyBody) -> None:
        frame = ControlReply(body)
        asked.reply, asked.replied_at = codec.encode_server(frame), time.monotonic()
        by = asked.instance
        targets = [r for r in self._outlet.readers if r is asked.asker or (by and r.instance == by)]
        asked.asker = None
        for target in targets:
            target.send(frame)

    # -- requests of the CLI ---------------------------------------------------------------------------------------

    def on_request(self, line: bytes) -> None:
        request = cli.decode_request(line)
        if request is None:
            return
        if request.request.subtype != "can_use_tool":
            why = f"unsupported request {request.request.subtype[:64]}"
            self._outlet.write(cli.refusal_line(request.request_id, why))
            return
        if not self.prompts.has_room_for(request.request_id):
            self._answer_cli(request.request_id, {"behavior": "deny", "message": "too many requests are pending"})
            return
        deadline = time.monotonic() + self.permission_timeout_s
        numbered = codec.splice_seq(line, self._outlet.forward(line))
        self.prompts.add(Prompt(request.request_id, numbered, bytes(request.request.input), deadline))

    def answer(self, frame: ControlResponse, reader: Reader) -> None:
        """A client's answer to a permission prompt; the first wins.  Raises ``ClientError``: the prompt waits on."""
        body = frame.response
        prompt = self.prompts.find(body.request_id)
        if body.subtype == "error":
            if len(self._outlet.readers) > 1:
                return  # another controller may know the answer
            self._answer_cli(prompt.request_id, {"behavior": "deny", "message": body.error or "the client failed"})
            self.settle(prompt.request_id, "denied", reader.instance)
            return
        if body.response is UNSET:
            raise ClientError(ErrorCode.BAD_FRAME, "response.response is missing", ref=body.request_id)
        answer = decode_answer(body.response, body.request_id)
        updates = decode_updates(answer, body.request_id)
        policy.check_updates(updates, self.policy, body.request_id)
        payload: dict[str, Any] = {"behavior": answer.behavior}
        if answer.behavior == "allow":
            payload["updatedInput"] = Raw(prompt.input) if answer.updatedInput is UNSET else answer.updatedInput
            if updates:
                payload["updatedPermissions"] = updates
        else:
            payload["message"] = "denied by the user" if answer.message is UNSET else answer.message
            if answer.interrupt is not UNSET:
                payload["interrupt"] = answer.interrupt
        self._answer_cli(prompt.request_id, payload)
        self.settle(prompt.request_id, "allowed" if answer.behavior == "allow" else "denied", reader.instance)

    def _answer_cli(self, request_id: str, payload: dict[str, Any]) -> None:
        self._outlet.write(cli.answer_line(request_id, payload))

    def settle(self, request_id: str, outcome: Outcome, by: str | None) -> None:
        if self.prompts.settle(request_id, outcome) is not None:
            self._outlet.settled()
            self._outlet.publish(RequestResolved(request_id, outcome, by))

    def withdraw_prompts(self) -> None:
        for prompt in self.prompts.withdraw_all():
            self._outlet.publish(RequestResolved(prompt.request_id, "withdrawn", None))

    # -- deadlines and the end ---------------------------------------------------------------------------------------

    def wake_times(self) -> list[float]:
        """When the next prompt or control request expires."""
        return [at for at in (self.prompts.next_deadline, self._controls.next_deadline) if at is not None]

    def tick(self, now: float) -> None:
        """Deny the prompts and give up the control requests whose time is over."""
        for prompt in self.prompts.expired(now):
            self._answer_cli(prompt.request_id, {"behavior": "deny", "message": "nobody answered in time"})
            self.settle(prompt.request_id, "expired", None)
        for asked in self._controls.expired(now):
            self._reply(asked, ControlReplyBody("error", asked.request_id, error="timeout"))

    def process_gone(self) -> None:
        """Close everything that only that process could have settled."""
        self.withdraw_prompts()
        for asked in self._controls.drop_all():
            self._reply(asked, ControlReplyBody("error", asked.request_id, error="cli_exited"))
        self._own.clear()


def _shown_answer(control: Control, response: Raw) -> Any:
    """A CLI's answer as a client may see it: MCP configurations hold URLs and headers and are taken out."""
    if not isinstance(control, McpStatus):
        return response
    found: Any = msgspec.json.decode(response)
    for server in found.get("mcpServers", []) if isinstance(found, dict) else []:
        if isinstance(server, dict):
            server.pop("config", None)
    return found
