"""Control requests of clients, and everything else that crosses the session between a client and the CLI.

Synchronous.  Owner: one ``broker.sessions.session.Session``, which lends it the ways out (``Outlet``).  Nothing that a
client sent reaches the CLI but by way of a typed struct that is encoded again.  What the CLI asks is in
``broker.sessions.questions``.
"""

import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import msgspec
from msgspec import UNSET, Raw
from msgspec.structs import replace

from broker.config.policy import Policy
from broker.config.tree import Config
from broker.options import mcp, policy
from broker.options.bound import PUBLIC_API, Bound
from broker.options.declared import Declared
from broker.options.shown import shown, shown_initialize
from broker.sessions.accepted import BY_OPTION, accept, alter
from broker.sessions.questions import Questions
from broker.turns.controls import MAX_IN_FLIGHT, Asked, Controls
from broker.turns.handshake import Handshake, Refused
from broker.turns.reader import Outlet, Owner, Reader
from protocol import cli, codec
from protocol.codes import ErrorCode
from protocol.controls import (
    ApplyFlagSettings,
    Control,
    GetContextUsage,
    Initialize,
    McpReconnect,
    McpSetServers,
    McpToggle,
    RewindFiles,
    SetCredentials,
)
from protocol.errors import ClientError
from protocol.frames import ControlReply, ControlReplyBody
from protocol.options import SessionOptions

CONTEXT_USAGE_EVERY_S = 10.0
"""One ``get_context_usage`` costs up to thirty requests to the API."""

Alter = Callable[[Bound], frozenset[str]]
OnAnswer = Callable[[cli.Answer], None]


class Exchange:
    """Control requests of one session's clients, and what is bound by them."""

    def __init__(self, outlet: Outlet, limits: Policy, config: Config) -> None:
        self._outlet = outlet
        self.bound = Bound(config.cli.env.get("ANTHROPIC_BASE_URL", PUBLIC_API))
        self.declared = Declared()
        self.handshake = Handshake()
        timeout_s, handshake_s = config.turn.permission_timeout_s, config.pool.mcp_bind_timeout_s
        self.questions = Questions(outlet, self.declared, limits, timeout_s, handshake_s)
        self._controls = Controls()
        self._own: dict[str, OnAnswer] = {}
        self._context_usage_at = -CONTEXT_USAGE_EVERY_S
        self.change: Callable[[Alter, OnAnswer, Callable[[], bool]], None] = lambda alter, on_done, is_wanted: None
        """How a live process is told of a change, if that is still wanted then; set by ``broker.sessions.changes``."""
        self.on_gone: Callable[[], None] = lambda: None
        self.on_initialized: Callable[[], None] = lambda: None

    @property
    def policy(self) -> Policy:
        """By which everything is judged from now on."""
        return self.questions.policy

    @policy.setter
    def policy(self, limits: Policy) -> None:
        self.questions.policy = limits

    @property
    def is_blocked(self) -> bool:
        """Whether the CLI reads nothing just now: it connects to an MCP server."""
        return self._controls.is_any_of(McpSetServers, McpReconnect, McpToggle)

    def inherit(self, parent: "Exchange") -> None:
        """Begin with what the processes of ``parent`` are told, and with whom their hooks and servers are.

        An ``initialize`` that a client of the parent brought is the broker's to give, unless hello announces another.
        """
        self.bound, self.questions.timeout_s = parent.bound.copy(), parent.questions.timeout_s
        self.bound.initialize_by, self.bound.is_initialize_known = "broker", True
        self.declared.take_over(parent.declared)

    def declare(self, options: SessionOptions, reader: Reader) -> None:
        """Hello's MCP servers that live in the client are served by ``reader``'s instance."""
        if options.mcp_servers is not UNSET:
            self.declared.take_servers(Owner.of(reader), options.mcp_servers)
            self.declared.keep_servers(self.bound.mcp_servers)

    # -- control requests of clients -----------------------------------------------------------------------------------

    def was_asked(self, request_id: str, reader: Reader) -> bool:
        """Whether this client instance has sent the request before: it then gets the same reply, now or when it comes,
        and nothing runs twice."""
        known = self._controls.repeat(reader.instance, request_id, time.monotonic()) if reader.instance else None
        if known is not None and known.reply is not None:
            reader.send(msgspec.json.decode(known.reply, type=ControlReply))
        return known is not None

    def answer_now(self, request_id: str, reader: Reader, response: dict[str, Any]) -> None:
        """Reply to a request that the broker carries out by itself."""
        self._reply_now(reader, ControlReplyBody("success", request_id, response))

    def _reply_now(self, reader: Reader, body: ControlReplyBody) -> None:
        frame = ControlReply(body)
        reader.send(frame)
        reply = codec.encode_server(frame)
        self._controls.settled(reader.instance, body.request_id, reply, time.monotonic())

    def control(self, request_id: str, control: Control, reader: Reader) -> None:
        """Carry out a client's control request; the reply goes to ``reader``.  Raises ``ClientError``."""
        control = policy.check_control(control, self.policy, request_id)
        self._check_state(control, request_id)
        if not self._outlet.has_process:
            reader.send(ControlReply(ControlReplyBody("error", request_id, error="cli_exited")))
            return
        match control:
            case Initialize():
                self._initialize(request_id, control, reader)
            case SetCredentials() | ApplyFlagSettings() | McpSetServers():
                self._change(request_id, control, reader)
            case _:
                cli_id = self._ask(request_id, control, reader)
                if isinstance(control, GetContextUsage):
                    self._context_usage_at = time.monotonic()
                elif isinstance(control, RewindFiles):
                    control = replace(control, user_message_id=self._outlet.turns.for_cli(control.user_message_id))
                self._outlet.write(cli.control_line(cli_id, control))

    def _change(
        self, request_id: str, control: SetCredentials | ApplyFlagSettings | McpSetServers, reader: Reader
    ) -> None:
        cli_id = self._ask(request_id, control, reader)

        def tell(bound: Bound) -> frozenset[str]:
            if isinstance(control, McpSetServers):  # one that lives in the client may be spoken to at once
                self.declared.try_servers(Owner.of(reader), control.servers)
            return alter(control, bound)

        def on_done(answer: cli.Answer) -> None:
            if isinstance(control, McpSetServers):
                self.declared.settle_servers(self.bound.mcp_servers, is_refused=answer.error is not None)
            self._finish(cli_id, answer)

        self.change(tell, on_done, partial(self._controls.is_open, cli_id))

    def supersede(self, options: Iterable[str]) -> None:
        """A hello has changed these: what the CLI still has to answer of them holds no more."""
        self._controls.supersede(*(BY_OPTION[name] for name in options if name in BY_OPTION))

    def _check_state(self, control: Control, request_id: str) -> None:
        """What no policy can judge alone: it depends on what happened before, and on the operator's own servers."""
        if isinstance(control, GetContextUsage):
            wait_s = self._context_usage_at + CONTEXT_USAGE_EVERY_S - time.monotonic()
            if wait_s > 0:
                message = f"get_context_usage: once in {CONTEXT_USAGE_EVERY_S:g} s"
                wait_ms = round(wait_s * 1e3) + 1
                raise ClientError(ErrorCode.RATE_LIMITED, message, ref=request_id, retry_after_ms=wait_ms)
        if isinstance(control, McpToggle) and not control.enabled and control.serverName in self.policy.mcp_servers:
            message = f"mcp_toggle {control.serverName}: not allowed (policy.mcp_servers)"
            raise ClientError(ErrorCode.OPTION_NOT_ALLOWED, message, ref=request_id)

    def _ask(self, request_id: str, control: Control, reader: Reader) -> str:
        """Register a request; the id under which the CLI, or a change, answers it."""
        asked = self._controls.ask(reader, reader.instance, request_id, control, time.monotonic())
        if asked is None:
            raise ClientError(ErrorCode.RATE_LIMITED, f"{MAX_IN_FLIGHT} control requests are in flight", ref=request_id)
        return asked[0]

    def expect(self, request_id: str, on_answer: OnAnswer) -> None:
        """Have ``on_answer`` called with the CLI's answer to one of the broker's own requests."""
        self._own[request_id] = on_answer

    def on_answer(self, line: bytes) -> None:
        """The CLI answers a request of the broker's, or of a client."""
        answer = cli.decode_answer_line(line)
        if answer is None:
            return
        own = self._own.pop(answer.request_id, None)
        if own is not None:
            own(answer)
        else:
            self._finish(answer.request_id, answer)

    def _finish(self, cli_id: str, answer: cli.Answer) -> None:
        asked = self._controls.answered(cli_id)
        if asked is None or asked.control is None:
            return
        control = asked.control
        if isinstance(control, Initialize):
            self._initialized(control, answer)
        if answer.error is not None:
            self._reply(asked, ControlReplyBody("error", asked.request_id, error=mcp.plain(answer.error, 512)))
        else:
            self._reply(asked, ControlReplyBody("success", asked.request_id, self._shown(control, answer)))
            state = None if asked.is_superseded else accept(control, self.bound, self.policy)
            if state is not None:
                self._outlet.publish(state)
        self._outlet.wake_task()  # an interrupt may have waited for this

    def _shown(self, control: Control, answer: cli.Answer) -> Any:
        match control:
            case Initialize():
                return self._shown_initialize()
            case McpSetServers(servers=servers):
                return mcp.shown_answer(answer.response, servers, self.policy.mcp_servers)
            case SetCredentials() | ApplyFlagSettings():
                return {}
            case _:
                return shown(control, answer.response)

    def _reply(self, asked: Asked, body: ControlReplyBody) -> None:
        if asked.reply is not None:  # an initialize whose client has heard that it takes too long
            asked.control = None
            return
        frame, asker, by = ControlReply(body), asked.asker, asked.instance
        self._controls.replied(asked, codec.encode_server(frame), time.monotonic())
        for reader in tuple(self._outlet.readers):
            if reader is asker or (by and reader.instance == by and reader.is_controller):
                reader.send(frame)

    # -- the client's own initialize -----------------------------------------------------------------------------------

    def _initialize(self, request_id: str, control: Initialize, reader: Reader) -> None:
        try:
            what = self.handshake.judge(control, reader, is_clients=self.bound.initialize_by == "client")
        except Refused as refused:
            self._reply_now(reader, ControlReplyBody("error", request_id, error=str(refused)))
            return
        if what == "cached":
            self.answer_now(request_id, reader, self._shown_initialize())
            return
        cli_id = self._ask(request_id, control, reader)
        wanted = self.bound.copy()
        wanted.set_initialize(control)
        self.handshake.asked(control, reader)
        self.declared.take_hooks(Owner.of(reader), wanted.hooks)  # one may be asked about before the answer is here
        self._outlet.write(cli.control_line(cli_id, wanted.initialize_request))

    def _initialized(self, control: Initialize, answer: cli.Answer) -> None:
        owner = self.handshake.owner
        if answer.error is not None or owner is None:
            self._not_initialized()
            return
        self.handshake.answered(answer.response)
        if self.bound.is_initialize_known:  # a second one: only its hooks are taken
            self.bound.hooks = control.hooks or {}
            return
        servers = self.bound.set_initialize(control)
        self.declared.take_servers(owner, servers)
        if servers:
            self.change(lambda bound: frozenset({"mcp_servers"}), lambda answer: None, lambda: True)
        self.on_initialized()

    def _not_initialized(self) -> None:
        """The CLI has not taken it: the hooks that were in force are."""
        owner = self.handshake.owner
        self.handshake.refused()
        if owner is not None:
            self.declared.take_hooks(owner, self.bound.hooks)

    def _shown_initialize(self) -> dict[str, Any]:
        answer = self.handshake.answer or Raw(b"{}")
        return shown_initialize(answer, is_own_account=self.policy.credentials == "client")

    # -- deadlines and the end -----------------------------------------------------------------------------------------

    def withdraw_prompts(self) -> None:
        """The turn has ended: what the CLI asked in it needs no answer."""
        self.questions.withdraw(with_turn_only=True)

    def wake_times(self) -> list[float]:
        """When the next question or control request expires."""
        return [at for at in (self.questions.next_deadline, self._controls.next_deadline) if at is not None]

    def tick(self, now: float) -> None:
        """Answer the questions and give up the control requests whose time is over."""
        self.questions.tick(now)
        for asked in self._controls.expired(now):
            self._reply(asked, ControlReplyBody("error", asked.request_id, error="timeout"))

    def process_gone(self) -> None:
        """Close everything that only that process could have settled."""
        self.questions.withdraw(with_turn_only=False)
        for asked in self._controls.drop_all():
            if isinstance(asked.control, Initialize):
                self._not_initialized()
            self._reply(asked, ControlReplyBody("error", asked.request_id, error="cli_exited"))
        self._own.clear()
        self.on_gone()
        self.declared.settle_servers(self.bound.mcp_servers, is_refused=True)
