"""One turn: from ``system/init`` to its ``result``.

Pauses are waits for stdin, so an interrupt is seen within a delta.  Owner and caller: ``simulator.session``.
"""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from simulator import commands, directives, faults, messages, refusals
from simulator.directives import DirectiveError, Directives
from simulator.messages import Message, Outcome
from simulator.refusals import Refusal
from simulator.reply import CutOff, Reply
from simulator.tool_use import ToolUse

if TYPE_CHECKING:
    from simulator.session import Session, UserMessage

_BLANK = "Blank prompt — the message was only whitespace, so nothing was sent to the model."


class Stopped(Exception):
    """The turn was interrupted at a wait."""


def run_turn(session: "Session", batch: "list[UserMessage]") -> None:
    """Run the turn of one user message, or of several that queued up together; returns after its ``result``."""
    turn = Turn(session, batch)
    session.turn = turn
    try:
        turn.run()
    finally:
        session.turn = None
        session.first_is_stopped = False
        session.output.split = 0


class Turn:
    """A running turn.

    An interrupt sets ``is_stopped``, which the turn sees at its next wait.  One that comes with its message, before
    ``system/init`` is out (``is_armed``), stops the first turn of a process and is lost on every later one: answered
    with success, and without effect.  That is what 2.1.329 was seen to do.
    """

    def __init__(self, session: "Session", batch: "list[UserMessage]") -> None:
        self.session = session
        self.is_armed = False
        self.is_stopped = session.first_is_stopped
        self.prompt_id: str | None = None
        """The permission prompt that is open."""
        self.directives = Directives()
        self.denials: list[Message] = []
        self.api_s = 0.0
        self._batch = batch
        self._text = "\n".join(message.text for message in batch)
        self.uuids = [message.uuid for message in batch if message.uuid]
        self._own_uuids = list(self.uuids)
        """Those that began the turn; ``uuids`` grows by the messages that join it."""
        self.unmarked = list(self.uuids)
        """The messages' uuids, until the turn's first assistant line has carried them."""
        self._began = time.monotonic()
        self._first_token_ms: int | None = None

    def run(self) -> None:
        """Say everything from ``started`` to ``result``."""
        self.session.usage.begin_turn()
        for uuid in self.uuids:
            self.session.lifecycle(uuid, "started")
        may_command = self._batch[0].is_command and self.session.flags.slash_commands
        command = commands.split(self._text) if may_command else None
        if command is not None:
            self._finish(self._command(*command))
        elif not self._text.strip() and not any(isinstance(message.content, list) for message in self._batch):
            self._init()
            self.session.system("informational", content=_BLANK, level="warning")
            self._finish(Outcome(stop_reason=None, terminal_reason=None, turns=0))
        else:
            self._finish(self._converse())

    def pause(self, seconds: float) -> None:
        """Let ``seconds`` pass, reading stdin; at least one look.  Raises ``Stopped``."""
        end = time.monotonic() + seconds
        self.listen(seconds)
        while (left := end - time.monotonic()) > 0:
            self.listen(left)

    def listen(self, seconds: float | None, also: Sequence[int] = ()) -> list[int]:
        """``Session.listen`` that raises ``Stopped`` once the turn is interrupted."""
        ready = self.session.listen(seconds, also)
        if self.is_stopped:
            raise Stopped
        return ready

    def tell(self, content: list[Message], **extra: Any) -> None:
        """Say a ``user`` line of the CLI's own and keep it."""
        line = messages.user(self.session.session_id, content, **extra)
        self.session.transcript.user(line["message"], line["uuid"], time.monotonic())
        self.session.send(line)

    def mark_first_token(self) -> None:
        """The first delta of the turn is out."""
        if self._first_token_ms is None:
            self._first_token_ms = round((time.monotonic() - self._began) * 1000)

    def _finish(self, outcome: Outcome) -> None:
        session = self.session
        if not outcome.is_error:
            outcome = outcome._replace(first_token_ms=self._first_token_ms)
        result = messages.result(
            session.session_id, outcome, session.usage, began=self._began, api_ms=self.api_s * 1000,
            index=session.results, denials=self.denials, queued=len(session.queue), uuids=self.uuids,
            last=self._own_uuids[-1] if self._own_uuids else None,
        )  # fmt: skip
        for uuid in self.uuids[len(self._own_uuids) :]:
            session.lifecycle(uuid, "completed")
        session.finish_turn(result, self._own_uuids, "cancelled" if outcome.is_error else "completed")

    def _command(self, name: str, rest: str) -> Outcome:
        session, text = self.session, ""
        if name == "clear":
            commands.clear(session, self.uuids[-1] if self.uuids else "")
        self._init()
        if name != "clear":
            text = commands.run(session, name, rest)
            session.send(commands.printed(session, name, rest, text))
        return Outcome(text=text, stop_reason=None, terminal_reason=None, turns=0, local_command=name)

    def _init(self) -> None:
        session, settings = self.session, self.session.settings
        servers = [{"name": row["name"], "status": row["status"]} for row in session.servers.values()]
        agents = [agent["name"] for agent in session.agents]
        init = messages.init(
            session.session_id, model=settings.model, mode=settings.mode, source=settings.api_key_source,
            tools=session.tools, servers=servers, version=session.version, agents=agents, uuids=self.uuids,
        )  # fmt: skip
        session.send(init)
        self.is_armed = True

    def _converse(self) -> Outcome:
        session = self.session
        problem = self._read_directives()
        faults.in_turn(self.directives, session.output)
        session.ignores_eof = session.ignores_eof or self.directives.ignore_eof
        earlier = session.transcript.earlier
        for message in self._batch:
            session.transcript.user({"role": "user", "content": message.content}, message.uuid, time.monotonic())
        self._init()
        self._request()
        refusal = refusals.find(session.settings, self.directives, problem)
        return self._refused(refusal) if refusal else self._replies(earlier)

    def _read_directives(self) -> str | None:
        """Read what the user's text asks for; what is wrong with it, if it cannot be read."""
        try:
            self.directives = directives.parse(self._text, self.session.turn_defaults)
        except DirectiveError as error:
            return str(error)
        return None

    def _replies(self, earlier: int) -> Outcome:
        """The model's tool call, if one was asked for, and its last reply."""
        session, turns = self.session, 1
        if self.directives.tool is not None:
            end = self._tool_round(self.directives.tool[0], directives.tool_input(self.directives.tool))
            turns, limit = 2, session.flags.max_turns
            if end is not None:
                return end
            if limit is not None and turns > limit:
                text = f"Reached maximum number of turns ({limit})"
                return Outcome(
                    "error_max_turns", is_error=True, stop_reason="tool_use", terminal_reason="max_turns", turns=turns,
                    error=text,
                )  # fmt: skip
            earlier = self._fold(earlier)
            self._request()
        reply = Reply(self)
        try:
            text = reply.say(directives.reply_pieces(self._text, self.directives, earlier))
        except Stopped:
            return self._interrupted(reply)
        except CutOff:
            reply.abandon(tells_delta=False)
            return self._refused(refusals.LOST)
        session.tell_limits("allowed")
        return Outcome(text=text, turns=turns)

    def _tool_round(self, name: str, given: Message) -> Outcome | None:
        """A tool call and its result; the outcome if the turn ends with it."""
        reply = Reply(self)
        try:
            use = ToolUse(self, reply.call(name, given))
        except Stopped:
            return self._interrupted(reply)
        try:
            if use.run():
                return None
        except Stopped:
            use.stop()
        self.tell([{"type": "text", "text": messages.INTERRUPTED_TOOL}])
        return _ended("aborted_tools", "tool_use", turns=3, counted=True)

    def _fold(self, earlier: int) -> int:
        """Messages that came during the tool call join this turn, whose reply and one result are then theirs, too.

        Returns how many messages the user said before the one that is answered.
        """
        folded = self.session.fold()
        if folded:
            earlier = self.session.transcript.earlier
            self._text = folded[0].text
            self._read_directives()
        for message in folded:
            self.session.lifecycle(message.uuid, "started")
            entry = {"role": "user", "content": message.content}
            self.session.transcript.user(entry, message.uuid, time.monotonic())
            self.uuids += [message.uuid] if message.uuid else []
        return earlier

    def _request(self) -> None:
        """A request to the API goes out."""
        fields = {"user_message_uuids": self.uuids} if self.uuids else {}
        self.session.system("status", status="requesting", **fields)

    def _refused(self, refusal: Refusal) -> Outcome:
        session = self.session
        if refusal.status == 401:
            retry = {"attempt": 0, "max_retries": 0, "retry_delay_ms": 0, "error_status": 401, "error": refusal.kind}
            session.system("api_retry", **retry)
            session.system("api_retry", **retry)
        elif refusal.status == 429:
            session.tell_limits("rejected")
        line = messages.api_error(session.session_id, refusal, self.uuids)
        session.transcript.assistant(line["message"], line["uuid"])
        session.send(line)
        return Outcome(
            text=refusal.text, is_error=True, stop_reason="stop_sequence", terminal_reason="api_error",
            status=refusal.status, error_type=refusal.error_type,
        )  # fmt: skip

    def _interrupted(self, reply: Reply) -> Outcome:
        """An interrupt came while the model spoke, or before it did."""
        reply.abandon(tells_delta=True, text=messages.INTERRUPTED)
        return _ended("aborted_streaming", None, turns=2, counted=False)


def _ended(why: str, stop_reason: str | None, *, turns: int, counted: bool) -> Outcome:
    """The outcome of a turn that was stopped."""
    reason = "null" if stop_reason is None else stop_reason
    text = f"[ede_diagnostic] result_type=user last_content_type=n/a stop_reason={reason}"
    return Outcome(
        "error_during_execution", is_error=True, stop_reason=stop_reason, terminal_reason=why, turns=turns, error=text,
        counted=counted,
    )  # fmt: skip
