"""What the CLI asks of clients: permission prompts, elicitations, hooks, messages for MCP servers in a client.

Synchronous.  Owner: one ``broker.sessions.exchange.Exchange``.  A prompt or an elicitation goes to everybody, numbered,
and the first controller's answer wins.  A hook or a message goes to the client instance that declared it, unnumbered,
and to nobody else.  Whatever happens the CLI is answered: a tool that a hook guards does not run then.  Over 300 lines
because the four kinds share every way in and out: what is asked, answered, expired and withdrawn.
"""

import time
from typing import Any, Final, get_args

import msgspec
import structlog
from msgspec import UNSET, Raw

from broker.config.policy import Policy
from broker.options import policy
from broker.options.declared import Declared
from broker.turns.introductions import Introductions
from broker.turns.reader import Outlet, Owner, Reader
from broker.turns.requests import Kind, Outcome, Pending, PendingRequests, unknown
from protocol import answers, cli, codec
from protocol.answers import PRE_TOOL_USE, ElicitationAnswer, HookAnswer, McpAnswer, RpcError, RpcReply
from protocol.codes import ErrorCode
from protocol.controls import HookEvent, decode_answer, decode_updates
from protocol.errors import ClientError
from protocol.frames import ControlResponse, RequestResolved, State

log = structlog.get_logger(__name__)

AWAY = RpcError(-32000, "the client that serves this MCP server does not answer")
TOO_MANY = "too many requests are pending"
NOBODY = "nobody answered in time"
DIALOG = "request_user_dialog"
TOOL_CALL = "tools/call"
KINDS: Final[dict[str, Kind]] = {kind: kind for kind in get_args(Kind)}
OTHER_EVENTS = frozenset(event.encode() for event in get_args(HookEvent) if event != PRE_TOOL_USE)
"""What hooks may be asked about that guard no tool."""


class Questions:
    """Open questions of one session's process.  ``handshake_s``: how long an MCP server may take to say what it is,
    and how long the client that serves one may be away."""

    def __init__(
        self, outlet: Outlet, declared: Declared, limits: Policy, timeout_s: float, handshake_s: float
    ) -> None:
        self._outlet = outlet
        self._declared = declared
        self.policy = limits
        self.timeout_s = timeout_s
        """For a person: prompts, elicitations and tools of a client's MCP server."""
        self._introductions = Introductions(handshake_s)
        self._open: PendingRequests[Owner] = PendingRequests()

    def __len__(self) -> int:
        return len(self._open)

    # -- asked ---------------------------------------------------------------------------------------------------------

    def on_request(self, line: bytes) -> None:
        """The CLI asks.  A request that is pending already is asked once."""
        request = cli.decode_request(line)
        if request is None or self._open.get(request.request_id) is not None:
            return
        if isinstance(request, cli.BareRequest):
            self._refuse_bare(request, line)
            return
        match request.request.subtype:
            case "can_use_tool" | "elicitation" as kind:
                self._ask_all(line, request, kind)
            case "hook_callback":
                self._ask_hook(line, request)
            case "mcp_message":
                self._ask_server(line, request)
            case subtype if subtype == DIALOG:  # of a kind that nobody has declared: by its rules it stays unanswered
                log.warning("session.dialog_ignored", request=request.request_id)
            case other:
                self._outlet.write(cli.refusal_line(request.request_id, f"unsupported request {other[:64]}"))

    def _refuse_bare(self, request: cli.BareRequest, line: bytes) -> None:
        kind = KINDS.get(request.request.subtype)
        if kind is not None:
            self._turn_away(Pending(request.request_id, line, b"", 0.0, kind), "a request of unknown form")
        elif request.request.subtype != DIALOG:
            self._outlet.write(cli.refusal_line(request.request_id, "a request of unknown form"))

    def _ask_all(self, line: bytes, request: cli.CliRequest, kind: Kind) -> None:
        if not self._open.has_room_for(request.request_id):
            self._turn_away(Pending(request.request_id, line, b"", 0.0, kind), TOO_MANY)
            return
        body = request.request
        numbered = codec.splice_seq(line, self._outlet.forward(line))
        deadline = time.monotonic() + self.timeout_s
        is_of_turn = body.agent_id is None
        self._open.add(Pending(request.request_id, numbered, bytes(body.input), deadline, kind, None, is_of_turn))

    def _ask_hook(self, line: bytes, request: cli.CliRequest) -> None:
        event = cli.hook_event(request.request.input)
        timeout = self._declared.hook_timeout_s(event, request.request.callback_id)
        owner = None if timeout is None else self._declared.hooks_owner
        self._ask_owner(line, request, event.encode(), owner, time.monotonic() + (timeout or 0.0))

    def _ask_server(self, line: bytes, request: cli.CliRequest) -> None:
        owner = self._declared.owner_of(request.request.server_name)
        message = cli.rpc_message(request.request.message)
        rpc_id, now = b"" if message.id is UNSET else bytes(message.id), time.monotonic()
        deadline: float | None = now
        if owner is not None and message.method != TOOL_CALL:
            deadline = self._introductions.deadline(request.request.server_name, message.method, now)
        elif owner is not None:
            is_away = owner.among(self._outlet.readers) is None
            deadline = now + (self._introductions.limit_s if is_away else self.timeout_s)
        self._ask_owner(line, request, rpc_id, owner, deadline)
        if deadline is None:
            self._give_up(request, now)

    def _ask_owner(
        self, line: bytes, request: cli.CliRequest, detail: bytes, owner: Owner | None, deadline: float | None
    ) -> None:
        kind: Kind = "hook_callback" if request.request.subtype == "hook_callback" else "mcp_message"
        pending = Pending(request.request_id, line, detail, deadline or 0.0, kind, owner)
        if owner is None:
            self._turn_away(pending, "nobody has declared it")
        elif deadline is None:
            self._turn_away(pending, NOBODY)
        elif not self._open.has_room_for(request.request_id):
            self._turn_away(pending, TOO_MANY)
        else:
            self._open.add(pending)
            self._tell_owner(pending, line)

    def _tell_owner(self, pending: Pending[Owner], line: bytes) -> None:
        reader = pending.owner.among(self._outlet.readers) if pending.owner is not None else None
        if reader is not None:
            reader.send(Raw(line))

    def lines_for(self, instance: str, *, is_controller: bool) -> list[bytes]:
        """What a client instance that attaches now is shown, oldest first: ``welcome.pending``."""
        name = instance if is_controller else ""
        return [p.line for p in self._open.all if p.owner is None or (name and p.owner.instance == name)]

    # -- answered ------------------------------------------------------------------------------------------------------

    def answer(self, frame: ControlResponse, reader: Reader) -> None:
        """A client's answer.  Raises ``ClientError``; the question then waits on, unless a hook could fail open."""
        body = frame.response
        pending = self._open.find(body.request_id)
        if pending.owner is not None and not pending.owner.is_(reader):
            raise unknown(body.request_id)
        if body.subtype == "error":
            is_alone = sum(other.is_controller for other in self._outlet.readers) <= 1
            if pending.owner is None and not is_alone:
                return  # another controller may know the answer
            self._refuse(pending, body.error or "the client failed")
            self.settle(pending.request_id, "denied", reader.instance)
            return
        self.settle(pending.request_id, self._take(pending, body.response), reader.instance)

    def _take(self, pending: Pending[Owner], response: Raw | msgspec.UnsetType) -> Outcome:
        match pending.kind:
            case "can_use_tool":
                return self._take_permission(pending, response)
            case "elicitation":
                return self._take_elicitation(pending, response)
            case "hook_callback":
                return self._take_hook(pending, response)
            case "mcp_message":
                return self._take_reply(pending, response)

    def _take_permission(self, pending: Pending[Owner], response: Raw | msgspec.UnsetType) -> Outcome:
        request_id = pending.request_id
        if response is UNSET:
            raise ClientError(ErrorCode.BAD_FRAME, "response.response is missing", ref=request_id)
        answer = decode_answer(response, request_id)
        updates = decode_updates(answer, request_id)
        policy.check_updates(updates, self.policy, request_id)
        payload: dict[str, Any] = {"behavior": answer.behavior}
        if answer.behavior == "allow":
            payload["updatedInput"] = Raw(pending.detail) if answer.updatedInput is UNSET else answer.updatedInput
            if updates:
                payload["updatedPermissions"] = updates
        else:
            payload["message"] = "denied by the user" if answer.message is UNSET else answer.message
            if answer.interrupt is not UNSET:
                payload["interrupt"] = answer.interrupt
        self._answer_cli(request_id, payload)
        return "allowed" if answer.behavior == "allow" else "denied"

    def _take_elicitation(self, pending: Pending[Owner], response: Raw | msgspec.UnsetType) -> Outcome:
        answer = answers.decode(ElicitationAnswer, response, pending.request_id)
        self._answer_cli(pending.request_id, answer)
        return "allowed" if answer.action == "accept" else "denied"

    def _take_hook(self, pending: Pending[Owner], response: Raw | msgspec.UnsetType) -> Outcome:
        event = pending.detail.decode()
        try:
            answer = answers.decode_hook(event, response, pending.request_id)
        except ClientError:
            # What the CLI cannot read it takes for no objection: the tool would run.
            self._refuse(pending, "the hook's answer could not be read")
            self.settle(pending.request_id, "denied", None)
            raise
        if event == PRE_TOOL_USE and answer.is_block:
            answer = msgspec.structs.replace(answer, decision=UNSET, hookSpecificOutput=_denial(answer.why))
        self._answer_cli(pending.request_id, answer)
        return "denied" if answer.is_block else "allowed"

    def _take_reply(self, pending: Pending[Owner], response: Raw | msgspec.UnsetType) -> Outcome:
        reply = answers.decode(McpAnswer, response, pending.request_id).mcp_response
        self._answer_cli(pending.request_id, {"mcp_response": _reply(pending.detail, reply)})
        return "denied" if reply.error is not UNSET else "allowed"

    # -- answered by the broker ----------------------------------------------------------------------------------------

    def _turn_away(self, pending: Pending[Owner], why: str) -> None:
        """Nobody is asked."""
        self._refuse(pending, why)
        self._outlet.count_question(pending.kind, "refused")

    def _refuse(self, pending: Pending[Owner], why: str) -> None:
        """The answer of nobody: no tool runs because of it."""
        request_id = pending.request_id
        match pending.kind:
            case "can_use_tool":
                self._answer_cli(request_id, {"behavior": "deny", "message": why})
            case "elicitation":
                self._answer_cli(request_id, ElicitationAnswer("cancel"))
            case "hook_callback" if pending.detail not in OTHER_EVENTS:
                # Only this blocks in every version: an error answer lets the tool run, and so does `continue: false`.
                self._answer_cli(request_id, HookAnswer(hookSpecificOutput=_denial(why)))
            case "mcp_message" if pending.detail:
                self._answer_cli(request_id, {"mcp_response": _reply(pending.detail, RpcReply("2.0", error=AWAY))})
            case _:
                self._outlet.write(cli.refusal_line(request_id, why))

    def _answer_cli(self, request_id: str, payload: Any) -> None:
        self._outlet.write(cli.answer_line(request_id, payload))

    # -- closed --------------------------------------------------------------------------------------------------------

    def on_cancel(self, line: bytes, request_id: str) -> None:
        """The CLI takes a question back; who saw it is told."""
        pending = self._open.get(request_id)
        if pending is None or pending.owner is None:
            self._outlet.forward(line)
        else:
            self._tell_owner(pending, line)
        self.settle(request_id, "withdrawn", None)

    def settle(self, request_id: str, outcome: Outcome, by: str | None) -> None:
        """Close a question; everybody is told of one that everybody saw."""
        pending = self._open.settle(request_id, outcome)
        if pending is None:
            return
        self._outlet.count_question(pending.kind, outcome)
        self._outlet.settled()
        if pending.owner is None:
            self._outlet.publish(RequestResolved(request_id, outcome, by))

    def withdraw(self, *, with_turn_only: bool) -> None:
        """The turn has ended, or the process is gone: nobody has to answer any more."""
        if not with_turn_only:
            self._introductions.reset()
        for pending in self._open.withdraw(with_turn_only=with_turn_only):
            self._outlet.count_question(pending.kind, "withdrawn")
            if pending.owner is None:
                self._outlet.publish(RequestResolved(pending.request_id, "withdrawn", None))
            else:
                self._tell_owner(pending, _cancellation(pending.request_id))

    @property
    def next_deadline(self) -> float | None:
        """When the next question expires."""
        return self._open.next_deadline

    def tick(self, now: float) -> None:
        """Answer what nobody answered in time."""
        for pending in self._open.expired(now):
            self._refuse(pending, NOBODY)
            self._tell_owner(pending, _cancellation(pending.request_id))
            self.settle(pending.request_id, "expired", None)
            request = cli.decode_request(pending.line) if pending.kind == "mcp_message" else None
            if isinstance(request, cli.CliRequest) and cli.rpc_message(request.request.message).method != TOOL_CALL:
                self._give_up(request, now)

    def _give_up(self, request: cli.CliRequest, now: float) -> None:
        """An MCP server does not introduce itself: everybody is told its name, once."""
        name = request.request.server_name
        if self._introductions.give_up(name, now):
            why = f"its client did not answer within pool.mcp_bind_timeout_s = {self._introductions.limit_s:g}"
            self._outlet.publish(State(mcp_errors={name: why}))


def _denial(why: str) -> answers.HookOutput:
    return answers.HookOutput(PRE_TOOL_USE, permissionDecision="deny", permissionDecisionReason=why[:4096])


def _cancellation(request_id: str) -> bytes:
    """Tells a client, as the CLI would, that its answer is needed no more."""
    return msgspec.json.encode({"type": "control_cancel_request", "request_id": request_id})


def _reply(rpc_id: bytes, reply: RpcReply) -> RpcReply:
    """``reply`` under the id of its request; a notification has none and is always answered alike."""
    if not rpc_id:
        return RpcReply("2.0", result={})
    return msgspec.structs.replace(reply, id=msgspec.json.decode(rpc_id))
