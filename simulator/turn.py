"""One turn: from ``system/init`` to its ``result``; what the model has to say in it is ``simulator.conversation``'s.

Pauses are waits for stdin, so an interrupt is seen within a delta.  Owner and caller: ``simulator.session``.
"""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from simulator import commands, faults, messages
from simulator.conversation import Conversation
from simulator.directives import Directives
from simulator.messages import Message, Outcome
from simulator.reply import Stopped

if TYPE_CHECKING:
    from simulator.inbox import UserMessage
    from simulator.session import Session

_BLANK = "Blank prompt — the message was only whitespace, so nothing was sent to the model."


def run_turn(session: "Session", batch: "list[UserMessage]", origin: Message | None = None) -> None:
    """Run the turn of one user message, or of several that queued up together; returns after its ``result``.

    Without any message it is a turn of the program's own: ``origin`` says why.
    """
    turn = Turn(session, batch, origin)
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

    def __init__(self, session: "Session", batch: "list[UserMessage]", origin: Message | None) -> None:
        self.session = session
        self.is_armed = False
        self.is_stopped = session.first_is_stopped
        self.is_preempted = False
        """A message came that does not wait."""
        self.is_at_tool = False
        """A tool call is under way: an urgent message waits for its end."""
        self.agent: Message = {}
        self.origin = origin
        self.directives = Directives()
        """What the user's text asks for, as far as it concerns the model that answers."""
        self.model = session.settings.model
        """The model that answers the request at hand: the session's, or a fallback."""
        self.denials: list[Message] = []
        self.api_s = 0.0
        self._batch = batch
        text = "\n".join(message.text for message in batch) if batch else session.last_text
        self._text = (session.extensions.expand(text) or text) if batch and batch[0].is_command else text
        session.last_text = self._text
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
        may_command = bool(self._batch) and self._batch[0].is_command and self.session.flags.slash_commands
        command = commands.split(self._text) if may_command else None
        if command is not None:
            self._finish(self._command(*command))
        elif not self._text.strip() and not any(isinstance(message.content, list) for message in self._batch):
            self._init()
            self.session.system("informational", content=_BLANK, level="warning")
            self._finish(Outcome(stop_reason=None, terminal_reason=None, turns=0))
        else:
            self._finish(self._blocked() or self._converse())

    def preempt(self) -> None:
        """A message has come that does not wait: stop, behind a tool call that is under way."""
        if self.is_armed:
            self.is_preempted = True
            self.is_stopped = self.is_stopped or not self.is_at_tool

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
            index=session.results, denials=self.denials, queued=len(session.inbox), uuids=self.uuids,
            last=self._own_uuids[-1] if self._own_uuids else None, origin=self.origin,
        )  # fmt: skip
        for uuid in self.uuids[len(self._own_uuids) :]:
            session.lifecycle(uuid, "completed")
        is_cut = str(outcome.terminal_reason).startswith("aborted")
        is_completed = not (outcome.is_error or is_cut) or outcome.subtype == "error_max_turns"
        session.finish_turn(result, self._own_uuids, "completed" if is_completed else "cancelled")

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
        servers = session.servers.init_rows() if session.has_servers else []
        agents = [agent["name"] for agent in session.agents]
        init = messages.init(
            session.session_id, model=settings.model, mode=settings.mode, source=settings.api_key_source,
            tools=session.tools, servers=servers, version=session.version, agents=agents, uuids=self.uuids,
            style=settings.output_style, directories=settings.directories, extensions=session.extensions,
        )  # fmt: skip
        session.send(init)
        self.is_armed = True
        for message in self._batch:
            session.checkpoints.begin(message.uuid)
            session.replay(message.content, message.uuid)

    def _blocked(self) -> Outcome | None:
        """Ask the hooks about the prompt: the outcome, if they do not let it pass."""
        if not self._batch:
            return None
        verdict = self.session.hooks.submit(self._text, self.session.listen)
        if verdict is None:
            return None
        text, fields = verdict
        self._init()
        self.session.system("informational", content=text, level="warning", prevent_continuation=True, **fields)
        return Outcome(text=text, stop_reason=None, terminal_reason=None, turns=0)

    def _converse(self) -> Outcome:
        session = self.session
        if session.has_servers:
            session.servers.settle(session.listen)
        conversation = Conversation(self, self._text, is_repeated=not self._batch)
        conversation.read()
        faults.in_turn(self.directives, session.output)
        session.ignores_eof = session.ignores_eof or self.directives.ignore_eof
        earlier = session.transcript.earlier
        for message in self._batch:
            session.transcript.user({"role": "user", "content": message.content}, message.uuid, time.monotonic())
        self._init()
        return conversation.run(earlier)
