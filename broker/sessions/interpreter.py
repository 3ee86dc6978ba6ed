"""What a line of the CLI means: for the running turn, the prompts, the session itself; and whether clients get it.

Synchronous.  Owner: one ``broker.sessions.session.Session``, which hands every line here that is not one more stream
event of an answer (``protocol.events``).
"""

import time
from collections.abc import Callable
from typing import Protocol

from msgspec import UNSET

from broker.config.tree import Config
from broker.metrics import Metrics
from broker.sessions.exchange import Exchange
from broker.sessions.interrupts import Interrupts
from broker.sessions.steering import Steering
from broker.sessions.terminals import Terminals
from broker.turns.occupation import Occupation
from broker.turns.turn import Turn, TurnEvent
from broker.turns.turns import Turns
from protocol import cli, codec, traces
from protocol.cli_frames import FORWARDED, SYSTEM_SUBTYPES
from protocol.codes import DropReason, FailureReason
from protocol.frames import Dropped
from protocol.lines import Line, Oversized

PASSED_ON = FORWARDED - traces.TRACE_TYPES - {"user"}
"""Types of frames that mean nothing to the broker and that every client gets."""


class Told(Protocol):
    """What a line may change of its session."""

    config: Config
    turns: Turns
    exchange: Exchange
    terminals: Terminals
    steering: Steering
    interrupts: Interrupts
    occupation: Occupation
    cli_session_id: str
    expected_key_source: str | None
    kill_reason: str | None
    is_verbose: bool
    wake_task: Callable[[], None]

    def append(self, line: bytes) -> int:
        """Number a line and log it; the readers are woken at the end of the batch."""

    def forward(self, line: bytes) -> int:
        """The same, as a frame of the running turn."""

    def flush(self, turn: Turn | None, began: float) -> None:
        """Wake the readers now."""

    def start_next(self) -> bool:
        """Write the next queued message if the CLI is idle."""

    def kill(self, reason: FailureReason, detail: str) -> None:
        """End the running turn and the process."""


class Interpreter:
    """Takes the lines of one session's processes."""

    def __init__(self, session: Told, metrics: Metrics) -> None:
        self._session = session
        self._metrics = metrics

    def take(self, line: Line, turn: Turn | None, began: float) -> None:
        """One line, whatever it is, in a batch that began at ``began`` (monotonic seconds)."""
        if isinstance(line, Oversized):
            self._session.append(codec.encode_server(Dropped(line.bytes, DropReason.TOO_LARGE)))
            self._metrics.cli_frame_dropped(DropReason.TOO_LARGE)
            return
        found = cli.peek(line)
        if found is DropReason.NOT_JSON and (repaired := cli.repair(line)) is not None:
            line, found = repaired, cli.peek(repaired)  # half of a character, cut by the CLI
        if isinstance(found, DropReason):
            self._drop(line, found)
            return
        if found.seq is not UNSET:
            line = codec.without_seq(line)  # the rare line that cannot be spliced
        if found.type not in PASSED_ON:
            self._act(line, found, began)
            return
        if turn is not None and found.type == "stream_event":
            if turn.first_delta_at is None and found.is_visible_delta:
                turn.first_delta_at = began
                turn.advance(TurnEvent.DELTA)
        elif turn is not None and found.type == "assistant" and found.error is not UNSET:
            turn.assistant_error = bytes(found.error).strip(b'"').decode()
        self._session.forward(line)

    def _drop(self, line: bytes, reason: DropReason) -> None:
        if line.strip():
            self._session.append(codec.encode_server(Dropped(len(line), reason)))
            self._metrics.cli_frame_dropped(reason)

    def _act(self, line: bytes, found: cli.Peek, began: float) -> None:
        """A line that means something to the broker; what belongs to the session is forwarded too."""
        session = self._session
        match found.type:
            case "control_response":
                session.exchange.on_answer(line)
            case "control_request":
                session.exchange.questions.on_request(line)
                session.wake_task()  # the prompt has a deadline
            case "control_cancel_request":
                session.exchange.questions.on_cancel(line, found.request_id)
            case "system":
                self._tell(line, traces.trace_name(found, line))
                self._on_system(line, found)
            case "result":
                session.forward(line)
                session.flush(session.turns.current, began)
                self._on_result(line)
            case "user":
                self._on_user(line)
            case kind if kind in FORWARDED:
                self._tell(line, traces.trace_name(found, line))
                if kind == traces.LIFECYCLE:
                    session.steering.on_lifecycle(traces.lifecycle(line))
            case unknown if unknown != "keep_alive":  # that is between the CLI and its host
                session.forward(line)
                self._metrics.cli_frame_unknown(unknown)

    def _tell(self, line: bytes, trace: str | None) -> None:
        """Forward a line unless it is a trace of the CLI's work, which only a verbose session shows."""
        if trace is None or self._session.is_verbose:
            self._session.forward(line)
        else:
            self._metrics.cli_frame_quieted(trace)

    def _on_user(self, line: bytes) -> None:
        """A tool's result, or a message of a client that the CLI says again when it takes it in."""
        session = self._session
        message_id = session.turns.own(traces.replayed(line) or "")
        self._tell(line, traces.REPLAY if session.turns.knows(message_id) else None)
        session.steering.take(message_id)

    def _on_system(self, line: bytes, found: cli.Peek) -> None:
        session = self._session
        turn = session.turns.current
        if found.subtype == "init":
            init = cli.decode_init(line)
            if init is None:
                return
            session.cli_session_id = cli.session_id(init.session_id, session.cli_session_id)
            if turn is not None and not turn.is_initialized:
                turn.is_initialized = True
                turn.advance(TurnEvent.FRAME)
            expected, session.expected_key_source = session.expected_key_source, None
            if expected not in (None, init.api_key_source):
                session.kill(FailureReason.CREDENTIAL_MISMATCH, f"the CLI uses {init.api_key_source[:64]!r}")
            if session.interrupts.send_due():
                session.wake_task()
        elif found.subtype == "session_state_changed":
            own_until = None if turn is not None else time.monotonic() + session.config.turn.timeout_s
            session.occupation.tell(found.state, own_until)
            session.start_next()
        elif found.subtype not in SYSTEM_SUBTYPES:
            self._metrics.cli_frame_unknown("system")

    def _on_result(self, line: bytes) -> None:
        session = self._session
        result = cli.decode_result(line)
        if result is None:
            session.kill(FailureReason.CLI_PROTOCOL, "a result of unknown form")
            return
        session.cli_session_id = cli.session_id(result.session_id, session.cli_session_id)
        session.occupation.result(time.monotonic())
        if session.kill_reason is not None:
            return  # the late result of a turn that has failed: forwarded, and no second terminal
        session.exchange.withdraw_prompts()
        session.terminals.complete(result)
        session.start_next()
