"""What a session does with the lines of its CLI: which get a number, and what they say of its messages."""

import json
from types import SimpleNamespace
from typing import Any, cast

import pytest

from broker.auth import Identity
from broker.config.policy import Policy
from broker.config.tree import Config
from broker.metrics import Metrics
from broker.options.declared import Hooks
from broker.processes.process import Process
from broker.sessions.session import Session
from broker.turns.message_ids import digest
from broker.turns.turn import Turn
from protocol.controls import HookMatcher, Interrupt
from protocol.options import Credentials
from protocol.traces import REPLAY, TRACES
from protocol.wire import text_of
from tests.broker.outlets import FakeReader

Frame = dict[str, Any]


class Conversation:
    """A session whose turn runs, and a CLI that is only what a test says in its place."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        identity = Identity("local", "ann", "controller", Policy())
        self.session = Session(("local", "ann", "conv-1"), identity, Config(), self.metrics)
        self.accept("m-1")
        self.session.turns.start_next(1.0)

    def accept(self, message_id: str, steered_at: float | None = None) -> None:
        made = Turn(message_id, b"", "hello", "tab", 1.0)
        self.session.turns.submit(made, digest(message_id.encode()), steered_at)

    def says(self, *frames: Frame) -> list[Frame]:
        """One batch of the CLI's output; what it adds to the log, without the numbers."""
        before = self.session.log.head
        self.session.on_lines([json.dumps(frame).encode() for frame in frames])
        found, head = self.session.log.read(before, 1 << 20)
        shown = [json.loads(text_of(frame)) for frame in found]
        assert [frame.pop("seq") for frame in shown] == list(range(before + 1, head + 1))
        return shown

    def quieted(self, name: str) -> float:
        found = self.metrics.registry.get_sample_value("broker_cli_frames_quieted_total", {"type": name})
        assert found is not None
        return found


def trace(name: str, **fields: Any) -> Frame:
    kind, _, subtype = name.partition("/")
    if name == REPLAY:
        return {"type": "user", "uuid": "m-1", "isReplay": True, **fields}
    return {"type": kind, **({"subtype": subtype} if subtype else {}), "status": "requesting", **fields}


DELTA = {"type": "stream_event", "event": {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "x"}}}


@pytest.mark.parametrize("name", TRACES)
def test_a_trace_takes_no_number(name: str) -> None:
    """Between two frames it leaves no gap, is counted, and is no frame of the turn; ``verbose`` shows it."""
    made = Conversation()
    assert made.says(DELTA, trace(name), DELTA) == [DELTA, DELTA]
    assert made.quieted(name) == 1
    assert made.session.turns.current is not None
    assert made.session.turns.current.frames == 2
    made.session.is_verbose = True
    assert made.says(trace(name)) == [trace(name)]
    assert made.quieted(name) == 1


def test_what_the_cli_says_again_of_its_own_is_shown() -> None:
    """The output of a command comes as a replay too, under an id that is no client's."""
    made = Conversation()
    output = {"type": "user", "uuid": "0b4e", "isReplay": True, "message": {"content": "<local-command-stdout>"}}
    assert made.says(output) == [output]


@pytest.mark.parametrize("is_verbose", [False, True])
@pytest.mark.parametrize(
    "sign",
    [
        {"type": "user", "uuid": "m-2", "isReplay": True, "message": {"role": "user", "content": "x"}},
        {"type": "command_lifecycle", "command_uuid": "m-2", "state": "started"},
    ],
)
def test_the_cli_says_that_it_took_a_message_in(sign: Frame, is_verbose: bool) -> None:
    """By either sign, shown or not: the message is the running turn's, and ends with it."""
    made = Conversation()
    made.session.is_verbose = is_verbose
    made.accept("m-2", steered_at=1.0)
    made.says(sign)
    assert made.session.turns.is_running("m-2")
    ends = [f for f in made.says({"type": "result", "subtype": "success"}) if f["type"] == "broker.turn_completed"]
    assert [(frame["id"], frame["folded_into"]) for frame in ends] == [("m-1", None), ("m-2", "m-1")]


def test_the_cli_says_that_it_dropped_a_message() -> None:
    """It ends at once, unread; a message of the running turn does not."""
    made = Conversation()
    made.accept("m-2", steered_at=1.0)
    dropped = [{"type": "command_lifecycle", "command_uuid": f"m-{number}", "state": "cancelled"} for number in (1, 2)]
    [frame] = made.says(*dropped)
    assert (frame["id"], frame["reason"], frame["applied"]) == ("m-2", "cancelled", "no")
    assert made.session.turns.current is not None
    [end] = [f for f in made.says({"type": "result", "subtype": "success"}) if f["type"] != "result"]
    assert (end["id"], end["type"]) == ("m-1", "broker.turn_completed")


def test_who_waits_for_a_first_token_is_counted_once() -> None:
    """The next turn's message is awaited from the result on; one that was folded in never is."""
    made = Conversation()
    changes: list[int] = []
    made.session.on_awaiting_first_token = changes.append
    made.accept("m-2", steered_at=1.0)
    made.accept("m-3", steered_at=1.0)
    made.says({"type": "result", "subtype": "success", "user_message_uuids": ["m-1"]})
    assert changes == [1]
    made.says({"type": "command_lifecycle", "command_uuid": "m-2", "state": "started"}, DELTA)
    assert changes == [1, -1]
    made.says({"type": "result", "subtype": "success", "user_message_uuids": ["m-2", "m-3"]})
    assert changes == [1, -1]


def init(source: str) -> Frame:
    return {"type": "system", "subtype": "init", "session_id": "0b4e", "apiKeySource": source}


def test_the_first_init_has_to_name_the_bound_credential() -> None:
    """Another one ends the turn before it can cost anybody anything; later ones are not compared."""
    made = Conversation()
    made.session.exchange.bound.credentials = Credentials(api_key="k")
    made.session.check_key_source()
    assert made.says(init("ANTHROPIC_API_KEY"), init("none")) == [init("ANTHROPIC_API_KEY"), init("none")]
    made.session.check_key_source()
    [_, failed] = made.says(init("none"))
    assert (failed["id"], failed["reason"], failed["detail"]) == ("m-1", "credential_mismatch", "the CLI uses 'none'")
    assert made.session.kill_reason == "credential_mismatch"


def test_without_a_credential_any_source_will_do() -> None:
    """The operator's environment pays: there is nothing to compare."""
    made = Conversation()
    made.session.check_key_source()
    assert made.says(init("anything")) == [init("anything")]


def test_what_cannot_be_steered() -> None:
    """No turn, one that is being stopped, no process, or a hook that has to see every message."""
    made = Conversation()
    session, found = made.session, []

    def look() -> None:
        found.append(session.steering.is_possible)

    look()
    session.process = cast("Process", SimpleNamespace(is_dead=False, pid=1))
    for hooks in ({}, {"PreToolUse": [HookMatcher(["h"])]}, {"UserPromptSubmit": [HookMatcher(["h"])]}):
        session.exchange.bound.hooks = cast("Hooks", hooks)
        look()
    assert found == [False, True, True, False]
    session.exchange.bound.hooks = {}
    session.is_gated = True
    look()
    session.is_gated = False
    session.turns.ask_interrupt(2.0)
    look()
    made.says({"type": "result", "subtype": "success"})
    look()
    assert found[4:] == [False, False, False]


def test_an_interrupt_stops_what_the_cli_does_by_itself() -> None:
    """A turn that it began when a background task had ended; where nothing runs, nothing is written."""
    made = Conversation()
    process = Ears()
    made.session.process = cast("Process", process)
    made.says({"type": "result", "subtype": "success", "session_id": "s"})
    busy = {"type": "system", "subtype": "session_state_changed", "state": "running"}
    made.session.control("c-1", Interrupt(), FakeReader("tab"))
    assert process.heard == []
    made.says({**busy, "state": "idle"}, busy)
    made.session.control("c-2", Interrupt(turn="m-1"), FakeReader("tab"))
    assert process.heard == [], "a turn that is over is not what runs"
    made.session.control("c-3", Interrupt(), FakeReader("tab"))
    assert [line["request"]["subtype"] for line in process.heard] == ["interrupt"]


class Ears:
    """A process that keeps what it is told."""

    is_dead = False
    pid = 1

    def __init__(self) -> None:
        self.heard: list[Frame] = []

    def write(self, data: bytes) -> None:
        self.heard += [json.loads(line) for line in data.splitlines()]
