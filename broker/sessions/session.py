"""One conversation: what clients send becomes turns, what the CLI says becomes numbered frames; it outlives sockets.

All methods are synchronous; what must wait is done by ``broker.sessions.tenure``, the session's task.  Callers: it, the
registry, ``broker.sockets.connection`` (submit, control, answer), ``broker.processes.process`` (``on_lines``: what one
read returned).  Over 300 lines because messages in and lines out share the turn and its process.
"""

import time
import uuid
from collections.abc import Callable

from msgspec import UNSET

from broker.auth import Identity
from broker.config.policy import Policy
from broker.config.tree import Config
from broker.errors import ProcessError
from broker.metrics import Metrics
from broker.options import policy
from broker.options.binding import expected_key_source
from broker.processes.process import Process
from broker.sessions.exchange import Exchange
from broker.sessions.interpreter import Interpreter
from broker.sessions.interrupts import Interrupts
from broker.sessions.journal import Journal
from broker.sessions.steering import Steering
from broker.sessions.terminals import Terminals
from broker.turns import watchdog
from broker.turns.message_ids import Repeat, digest
from broker.turns.occupation import Occupation
from broker.turns.reader import Reader
from broker.turns.replay import ReplayLog
from broker.turns.turn import Turn
from broker.turns.turns import Turns
from protocol import cli, codec
from protocol.codes import FailureReason
from protocol.controls import Control, Interrupt
from protocol.errors import ClientError
from protocol.events import event_frames
from protocol.frames import Accepted, Message, ServerFrame, User, UserMessage
from protocol.lines import Line
from protocol.media import describe
from protocol.wire import text_frame


class Session:
    """One conversation of ``(tenant, subject, id)``."""

    def __init__(self, key: tuple[str, str, str], identity: Identity, config: Config, metrics: Metrics) -> None:
        self.key = key
        self.config = config
        self.metrics = metrics
        self.log = ReplayLog(uuid.uuid4().hex[:12], config.replay.frames, config.replay.bytes)
        self.turns = Turns(config.turn.queue)
        self.exchange = Exchange(self, identity.policy, config)
        self.journal = Journal(key, None, metrics)
        self.terminals = Terminals(self, metrics)
        self.steering = Steering(self)
        self.interrupts = Interrupts(self)
        self._interpreter = Interpreter(self, metrics)
        self.readers: list[Reader] = []
        self.process: Process | None = None
        self.pool = self.start = self._cli_session_id = ""
        self.on_named: Callable[[str, str], None] = lambda old, new: None
        self.is_binding = self.is_gated = False
        """The process owes answers that guard safety, or MCP servers are still being bound: no user line yet."""
        self.occupation = Occupation()
        self.is_verbose = False
        """Clients get everything that the CLI says, traces of its work too."""
        self.last_terminal_at = time.monotonic()
        self.kill_reason: str | None = None
        self.wake_task: Callable[[], None] = lambda: None
        self.on_awaiting_first_token: Callable[[int], None] = lambda change: None
        self.lines_before_turn: Callable[[], bytes] = bytes
        """What the process has to be told before its next user line: options that a new hello changed."""
        self.has_untold_changes = self.has_held_options = False
        """Control requests wait to be told, options of a hello for the next turn: no message overtakes them."""
        self.expected_key_source: str | None = None
        """What the next ``system/init`` has to name; None when that is settled."""

    @property
    def policy(self) -> Policy:
        """By which everything is judged: that of the connection that came last."""
        return self.exchange.policy

    @property
    def cli_session_id(self) -> str:
        """By which the CLI knows the conversation; empty before its first process."""
        return self._cli_session_id

    @cli_session_id.setter
    def cli_session_id(self, found: str) -> None:
        known, self._cli_session_id = self._cli_session_id, found
        if found != known:
            self.on_named(known, found)

    # -- publishing ------------------------------------------------------------------------------------------------

    def publish(self, frame: ServerFrame) -> int:
        """Number a session event, log it and wake the readers."""
        seq = self.append(codec.encode_server(frame))
        self.wake_readers()
        return seq

    def append(self, line: bytes) -> int:
        """Number a line and log it; the readers are woken at the end of the batch."""
        replay = self.log
        return replay.append(text_frame(codec.splice_seq(line, replay.head + 1)))

    def wake_readers(self) -> None:
        """Let every attached connection go on from its cursor."""
        for reader in tuple(self.readers):
            reader.wake()
        self.log.trim()

    # -- messages --------------------------------------------------------------------------------------------------

    def submit(self, frame: User | UserMessage, reader: Reader, received_at: float) -> None:
        """Accept a user message, or say that it is a repeat.  Raises ``ClientError``; nothing is then changed."""
        content = frame.message.content if isinstance(frame, User) else frame.content
        given = frame.uuid if isinstance(frame, User) else frame.id
        message_id = given if given is not UNSET else str(uuid.uuid4())
        is_command = policy.check_content(content, self.policy, message_id)
        cli_id = message_id + self.turns.mark
        line = cli.user_line(cli_id, content, is_command=is_command)
        turn = Turn(message_id, line, content, reader.instance, received_at)
        is_steering = frame.steer and self.steering.is_possible
        written_at = time.monotonic() if is_steering else None
        turn.is_noted_waiting = not (is_steering or (self.turns.is_idle and self._takes_a_turn))
        outcome = self.turns.submit(turn, digest(line), written_at, self.journal.accept)
        if isinstance(outcome, Repeat):
            reader.send(Accepted(message_id, 0, duplicate=True, outcome=outcome.outcome))
            return
        reader.send(Accepted(message_id, outcome))
        is_queued = not is_steering and not self.start_next()
        if is_steering:
            is_queued = self._write(turn, cli.user_line(cli_id, content, is_command=is_command, is_steering=True))
        if is_queued:
            self.publish(Message(message_id, "queued", reader.instance, describe(content)))
            self.wake_task()

    def start_next(self) -> bool:
        """Write the next queued message if the CLI is idle; True when the queue is empty afterwards."""
        turn = None
        if self.turns.current is None and self._takes_a_turn:
            try:
                turn = self.turns.start_next(time.monotonic(), self.journal.write)
            except ClientError as error:
                self.terminals.fail_queued(FailureReason.CANCELLED, error.message)
        if turn is not None:
            self.terminals.await_first_token(turn)
            if self._write(turn, self.lines_before_turn() + turn.line):
                self.announce(turn)
        return not self.turns.queued_ids

    @property
    def _takes_a_turn(self) -> bool:
        """Whether an idle CLI would be given a message now; for the next process, and after answers, one waits."""
        is_held = self.is_binding or self.is_gated or self.has_untold_changes or self.occupation.is_busy
        return not (is_held or self.process is None or self.kill_reason is not None or self.process.is_dead)

    def _write(self, turn: Turn, lines: bytes) -> bool:
        """Give a message to the CLI; a process that takes none any more is ended, and the message with it."""
        process, began = self.process, time.monotonic()
        assert process is not None
        try:
            process.write(lines)
        except ProcessError as error:
            self.kill(error.reason, error.detail)
            return False
        turn.overhead_s += time.monotonic() - began
        turn.line = b""
        return True

    def announce(self, turn: Turn) -> None:
        """Tell everybody that the CLI works on a message from now on."""
        turn.first_seq = self.log.head + 1
        self.publish(Message(turn.id, "started", turn.by, describe(turn.content)))
        self.wake_task()

    def cancel(self, message_id: str) -> None:
        """Withdraw a queued message; raises ``ClientError`` when it is not queued."""
        self.terminals.publish([(self.turns.cancel(message_id), None)])

    # -- the CLI's lines: the hot path -----------------------------------------------------------------------------

    def on_lines(self, lines: list[Line]) -> None:
        """One batch of the CLI's output: numbered, logged, what it means done, the readers woken once."""
        began, at = time.monotonic(), 0
        replay, turns = self.log, self.turns
        while at < len(lines):
            turn = turns.current
            awaits_delta = turn is not None and turn.first_delta_at is None
            frames = [] if awaits_delta else event_frames(lines, at, replay.head + 1)
            if not frames:
                self._interpreter.take(lines[at], turn, began)
                at += 1
                continue
            replay.extend(frames)
            at += len(frames)
            if turn is not None:
                turn.frames += len(frames)
        turn = turns.current
        self.flush(turn, began)
        if turn is not None:
            turn.last_frame_at = began

    def flush(self, turn: Turn | None, began: float) -> None:
        """Wake the readers; a first delta counts as delivered once they have been given it."""
        self.wake_readers()
        if turn is not None and turn.first_delta_at is not None and turn.ttft_s is None:
            self.terminals.first_token_delivered(turn, began)

    def forward(self, line: bytes) -> int:
        """Number and log a line of the CLI; the readers are woken at the end of the batch."""
        if self.turns.current is not None:
            self.turns.current.frames += 1
        return self.append(line)

    @property
    def has_process(self) -> bool:
        """Whether a CLI is bound to this session now."""
        return self.process is not None

    def count_question(self, kind: str, outcome: str) -> None:
        """A request of the CLI that is for clients came to its end."""
        self.metrics.question_ended(kind, outcome)

    def settled(self) -> None:
        """A prompt was closed: silence counts from now."""
        if self.turns.current is not None:
            self.turns.current.last_frame_at = time.monotonic()
        self.wake_task()

    def check_key_source(self) -> None:
        """Compare the CLI's credential with the one that is bound now at the next ``system/init``."""
        self.expected_key_source = expected_key_source(self.exchange.bound.credentials)

    # -- failing ---------------------------------------------------------------------------------------------------

    def kill(self, reason: FailureReason, detail: str) -> None:
        """End the running turn for ``reason`` and ask the tenure to kill the process."""
        self.terminals.fail_running(reason, detail)
        self.terminals.fail_queued(FailureReason.CANCELLED, "its process had to be ended: nothing was written")
        if self.kill_reason is None:
            self.kill_reason = reason.value
            if self.process is not None:
                self.process.kill()
        self.wake_task()

    def detach_process(self, reason: FailureReason, detail: str) -> None:
        """The process is gone: end its turn for ``reason``, its prompts and control requests, and what was queued
        behind the turn.  A message that came while none ran stays: the next process gets it."""
        had_turn = self.turns.current is not None
        self.terminals.fail_running(reason, detail)
        if had_turn:
            self.terminals.fail_queued(FailureReason.CANCELLED, "its process has ended: nothing was written")
        self.exchange.process_gone()
        self.process = None
        self.is_gated = self.is_binding = False
        self.occupation = Occupation()
        self.kill_reason = None

    def attach_process(
        self, process: Process, pool: str, start: str, session_id: str, *, is_verbose: bool = False
    ) -> None:
        """A leased process becomes this session's: its lines come here from now on."""
        self.process, self.pool, self.start, self.cli_session_id = process, pool, start, session_id
        self.is_binding, self.is_verbose = True, is_verbose
        self.turns.usage.process_changed()
        self.check_key_source()
        process.on_lines = self.on_lines

    # -- deadlines -------------------------------------------------------------------------------------------------

    def wake_times(self) -> list[float]:
        """When ``tick`` has something to do; monotonic seconds."""
        has_prompts = len(self.exchange.questions) > 0
        turn = watchdog.wake_times(self.turns.current, self.config.turn, has_prompts=has_prompts)
        busy = [self.occupation.until] if self._waits_for_idle else []
        return turn + busy + self.exchange.wake_times()

    @property
    def _waits_for_idle(self) -> bool:
        waits = self.occupation.is_busy and self.turns.current is None and bool(self.turns.queued_ids)
        return waits or self.occupation.is_own

    def tick(self, now: float) -> None:
        """Do what is due: deny expired prompts, repeat an interrupt, give up on the turn."""
        self.exchange.tick(now)
        self.interrupts.send_due()
        if self._waits_for_idle and self.occupation.give_up(now):
            self.start_next()
        turn = self.turns.current
        reason = watchdog.overdue(turn, self.config.turn, now, has_prompts=len(self.exchange.questions) > 0)
        if reason is not None and turn is not None and turn.written_at is not None:
            self.kill(reason, f"after {now - turn.written_at:.1f} s")

    # -- control requests of clients -------------------------------------------------------------------------------

    def control(self, request_id: str, control: Control, reader: Reader) -> None:
        """Carry out a client's control request; the reply goes to ``reader``.  Raises ``ClientError``."""
        if self.exchange.was_asked(request_id, reader):
            return
        if isinstance(control, Interrupt):
            self.exchange.answer_now(request_id, reader, self.interrupts.ask(control))
        else:
            self.exchange.control(request_id, control, reader)
        self.wake_task()

    def write(self, line: bytes) -> None:
        """Queue a line for the CLI; a process that takes none any more is ended."""
        if self.process is None:
            return
        try:
            self.process.write(line)
        except ProcessError as error:
            self.kill(error.reason, error.detail)
