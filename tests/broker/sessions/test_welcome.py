"""The welcome tells the whole truth at ``head_seq``."""

from broker.auth import Identity
from broker.config.limits import Limits as Allowed
from broker.config.policy import Policy
from broker.config.tree import Config
from broker.config.tree import Replay as ReplayConfig
from broker.config.tree import Turn as TurnConfig
from broker.metrics import Metrics
from broker.sessions.session import Session
from broker.sessions.welcome import welcome
from broker.turns.message_ids import digest
from broker.turns.reader import Owner
from broker.turns.replay import Resume
from broker.turns.turn import Turn
from protocol.codec import encode_server
from protocol.codes import LostReason, MissReason, Start
from protocol.controls import HookMatcher
from protocol.frames import ClientInfo, CliInfo, Hello, Limits, Lost, Replay, SessionRef, TurnInfo, Welcome
from tests.broker import outlets

CONFIG = Config(turn=TurnConfig(queue=7), replay=ReplayConfig(frames=5, bytes=4096, seconds=60))
ALLOWED = Allowed(messages_per_second=5, messages_burst=9)


def session(frames: int = 0) -> Session:
    made = Session(("local", "ann", "conv-1"), Identity("local", "ann", "controller", Policy()), CONFIG, Metrics())
    made.cli_session_id = "0b4e"
    for _ in range(frames):
        made.log.append(b"x")
    made.log.trim()
    return made


def told(made: Session, reference: SessionRef | None = None) -> Welcome:
    ref = reference or SessionRef()
    return welcome(
        made, Hello(session=ref), made.log.resume(ref.epoch, ref.last_seq),
        start=Start.COLD, miss_reason=MissReason.POOL_EMPTY, ready_ms=3.14159, ignored=["system_prompt"],
        cli=("2.1.329", True), max_message_bytes=8388608, allowed=ALLOWED, last_close=None,
    )  # fmt: skip


def test_a_new_session() -> None:
    """Nothing happened yet: no replay, no turn, nothing pending; the limits are those that were configured."""
    made = session()
    found = told(made)
    assert found == Welcome(
        session_id="conv-1", epoch=made.log.epoch, head_seq=0, resumed=False, replay=None, lost=None, start=Start.COLD,
        miss_reason=MissReason.POOL_EMPTY, ready_ms=3.142, role="controller", view="cli",
        cli=CliInfo("2.1.329", True, "0b4e"), options_ignored=["system_prompt"], turn=None, queued=[], pending=[],
        limits=Limits(8388608, 16777216, 5, 9, 7, 5, 4096, 60), protocol=1,
    )  # fmt: skip


def test_where_a_client_goes_on() -> None:
    """What is replayed, what is lost and whether it is a resume follow from where the client stopped reading."""
    made = session(frames=8)
    assert (made.log.tail, made.log.head) == (3, 8)
    for last_seq, resumed, replay, lost in (
        (None, False, None, None),
        (0, True, Replay(4, 8), None),
        (3, True, Replay(4, 8), None),
        (6, True, Replay(7, 8), None),
        (8, True, None, None),
        (1, False, Replay(4, 8), Lost(2, 3, LostReason.TOO_FAR_BEHIND)),
        (9, False, None, Lost(9, 9, LostReason.FUTURE_SEQ)),
    ):
        found = told(made, SessionRef(mode="resume", id="conv-1", last_seq=last_seq))
        assert (found.resumed, found.replay, found.lost) == (resumed, replay, lost), last_seq
        assert found.head_seq == 8
    other = told(made, SessionRef(mode="resume", id="conv-1", epoch="other", last_seq=6))
    assert (other.resumed, other.replay, other.lost) == (False, Replay(4, 8), Lost(7, None, LostReason.EPOCH_CHANGED))


def test_what_runs_waits_and_is_asked() -> None:
    """The running turn, the queue in order, and every open prompt exactly as clients got it."""
    made = session(frames=2)
    for name in ("m-1", "m-2", "m-3"):
        made.turns.submit(Turn(name, b"", "hello", "tab", 0.0), digest(b""))
    running = made.turns.start_next(0.0)
    assert running is not None
    running.first_seq = 2
    asked = b'{"type":"control_request","request_id":"r1" ,"request":{"subtype":"can_use_tool","input":{}}'
    made.on_lines([asked + b"}"])
    line = asked + b',"seq":3}'
    found = told(made)
    assert found.turn == TurnInfo("m-1", "running", 2)
    assert found.queued == ["m-2", "m-3"]
    assert b'"pending":[' + line + b"]" in encode_server(found)


def test_it_is_told_for_the_position_that_was_decided() -> None:
    """The log may have moved since; the frame speaks of the cursor that the connection was given."""
    made = session(frames=4)
    found = welcome(
        made, Hello(session=SessionRef(last_seq=1)), Resume(1, None), start=Start.ATTACHED, miss_reason=None,
        ready_ms=0.0, ignored=[], cli=("2.1.197", False), max_message_bytes=8388608, allowed=ALLOWED, last_close=None,
    )  # fmt: skip
    assert (found.replay, found.start, found.cli) == (Replay(2, 4), Start.ATTACHED, CliInfo("2.1.197", False, "0b4e"))


def test_an_observer_is_shown_no_questions_of_an_owner() -> None:
    """Even one that says it is the owner's instance: a hook's payload is for who may answer it."""
    made = session()
    reader = outlets.FakeReader("tab")
    made.readers.append(reader)
    made.exchange.declared.take_hooks(Owner.of(reader), {"PreToolUse": [HookMatcher(["h"])]})
    hook = {"callback_id": "h", "input": {"hook_event_name": "PreToolUse"}}
    made.on_lines([outlets.asked("r1", "hook_callback", **hook)])
    client = ClientInfo(instance="tab")
    for hello, shown in ((Hello(client=client), 1), (Hello(client=client, role="observer"), 0)):
        found = welcome(
            made, hello, Resume(0, None), start=Start.ATTACHED, miss_reason=None, ready_ms=0.0, ignored=[],
            cli=("2.1.329", True), max_message_bytes=8388608, allowed=ALLOWED, last_close=None,
        )  # fmt: skip
        assert len(found.pending) == shown, hello.role
