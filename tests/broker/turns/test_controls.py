"""Control requests in flight: each is answered once, a repeat joins it, and nothing grows."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from broker.turns.controls import DEADLINE_S, KEPT_S, MAX_IN_FLIGHT, MAX_KEPT, MAX_KEPT_BYTES, Asked, Controls
from protocol.controls import Initialize, McpReconnect, McpStatus, McpToggle, SetModel
from tests.soak import size

ASKER = object()


def ask(controls: Controls, request_id: str, now: float = 0.0, instance: str = "tab") -> tuple[str, Asked]:
    asked = controls.ask(ASKER, instance, request_id, McpStatus(), now)
    assert asked is not None
    return asked


def answer(controls: Controls, cli_id: str) -> Asked | None:
    return controls.answered(cli_id)


class InFlight(RuleBasedStateMachine):
    """Every request that was asked leaves once: answered, expired or dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.controls = Controls()
        self.now = 0.0
        self.open: dict[str, Asked] = {}
        self.used: set[str] = set()

    @rule(seconds=st.integers(0, 40))
    def pass_time(self, seconds: int) -> None:
        self.now += seconds

    @rule(instance=st.sampled_from(["", "a", "b"]), request_id=st.sampled_from(["c1", "c2", "c3"]))
    def ask(self, instance: str, request_id: str) -> None:
        found = self.controls.ask(ASKER, instance, request_id, McpStatus(), self.now)
        assert (found is None) == (len(self.open) >= MAX_IN_FLIGHT)
        if found is not None:
            cli_id, asked = found
            assert cli_id not in self.used
            assert (asked.asker, asked.instance, asked.request_id) == (ASKER, instance, request_id)
            assert asked.deadline == self.now + DEADLINE_S
            assert self.controls.repeat(instance, request_id, self.now) is asked
            self.used.add(cli_id)
            self.open[cli_id] = asked

    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        cli_id = data.draw(st.sampled_from([*sorted(self.used), "interrupt-1"]))
        assert answer(self.controls, cli_id) is self.open.pop(cli_id, None)

    @rule()
    def expire(self) -> None:
        late = [cli_id for cli_id, asked in self.open.items() if asked.deadline <= self.now]
        assert self.controls.expired(self.now) == [self.open.pop(cli_id) for cli_id in late]

    @rule()
    def drop(self) -> None:
        assert self.controls.drop_all() == list(self.open.values())
        self.open.clear()

    @invariant()
    def agree(self) -> None:
        assert self.controls.next_deadline == min((asked.deadline for asked in self.open.values()), default=None)


def test_the_requests_in_flight_are_their_model() -> None:
    """Ask, answer, expire, drop: in any order each request leaves once and no id is used twice."""
    run_state_machine_as_test(
        InFlight, settings=settings(max_examples=size(20, 60), stateful_step_count=30, deadline=None)
    )


def test_a_repeat_joins_or_gets_the_kept_reply() -> None:
    """In flight the repeat is the same request; its reply is kept for a minute and then forgotten."""
    controls = Controls()
    cli_id, asked = ask(controls, "c1")
    assert controls.repeat("tab", "c1", 59.0) is asked
    assert controls.repeat("other", "c1", 0.0) is None
    assert controls.repeat("tab", "c2", 0.0) is None
    assert answer(controls, cli_id) is asked
    asked.reply, asked.replied_at = b"{}", 10.0
    assert controls.repeat("tab", "c1", 10.0 + KEPT_S) is asked
    assert controls.repeat("tab", "c1", 10.1 + KEPT_S) is None


def test_what_the_broker_answers_itself_is_remembered_too() -> None:
    """A request that needed no CLI is in nobody's way, and its repeat gets the same reply for as long."""
    controls = Controls()
    controls.settled("tab", "c1", b"{}", 10.0)
    known = controls.repeat("tab", "c1", 10.0 + KEPT_S)
    assert known is not None
    assert known.reply == b"{}"
    assert controls.repeat("tab", "c1", 10.1 + KEPT_S) is None
    assert controls.next_deadline is None
    assert controls.drop_all() == []


def test_two_clients_may_use_the_same_id() -> None:
    """The CLI is asked under the broker's own ids, so the answers cannot be mixed up."""
    controls = Controls()
    one, two = object(), object()
    first = controls.ask(one, "", "c1", SetModel("opus"), 0.0)
    second = controls.ask(two, "", "c1", SetModel("haiku"), 0.0)
    assert first is not None
    assert second is not None
    assert first[0] != second[0]
    assert answer(controls, first[0]) is first[1]
    assert (first[1].asker, second[1].asker) == (one, two)


def test_the_bounds() -> None:
    """So many in flight, so many remembered; an answer that nobody asked for is none of ours."""
    controls = Controls()
    open_ids = [ask(controls, f"c{number}")[0] for number in range(MAX_IN_FLIGHT)]
    assert controls.ask(ASKER, "tab", "more", McpStatus(), 0.0) is None
    assert answer(controls, "bind-1-model") is None
    assert answer(controls, open_ids[0]) is not None
    assert answer(controls, open_ids[0]) is None
    for number in range(MAX_KEPT):
        cli_id, _ = ask(controls, f"d{number}")
        answer(controls, cli_id)
    assert controls.repeat("tab", "c1", 0.0) is None
    assert controls.repeat("tab", f"d{MAX_KEPT - 1}", 0.0) is not None


def test_a_request_expires_at_its_deadline() -> None:
    """At the deadline the request is taken out; a late answer is then none of ours."""
    controls = Controls()
    cli_id, asked = ask(controls, "c1", 5.0)
    assert controls.expired(5.0 + DEADLINE_S - 0.001) == []
    assert controls.expired(5.0 + DEADLINE_S) == [asked]
    assert answer(controls, cli_id) is None
    assert controls.next_deadline is None


def test_what_keeps_the_cli_busy_is_seen() -> None:
    """From the question to its answer, by kind."""
    controls = Controls()
    ask(controls, "c1")
    assert not controls.is_any_of(McpReconnect, McpToggle)
    asked = controls.ask(ASKER, "tab", "c2", McpReconnect("acme"), 0.0)
    assert asked is not None
    assert controls.is_any_of(McpReconnect, McpToggle)
    answer(controls, asked[0])
    assert not controls.is_any_of(McpReconnect, McpToggle)


def test_nothing_of_a_request_is_kept_but_its_reply() -> None:
    """What was asked may be secret and large; replies are bounded in time and bytes, the latest apart."""
    controls = Controls()
    cli_id, asked = ask(controls, "c1")
    assert answer(controls, cli_id) is asked
    controls.replied(asked, b"x" * (MAX_KEPT_BYTES // 2), 1.0)
    assert (asked.control, asked.asker) == (None, None)
    controls.settled("tab", "c2", b"x" * (MAX_KEPT_BYTES // 2), 2.0)
    assert controls.repeat("tab", "c1", 3.0) is asked
    controls.settled("tab", "c3", b"x", 3.0)
    assert controls.repeat("tab", "c1", 3.0) is None, "the oldest goes first"
    assert controls.repeat("tab", "c2", 3.0) is not None
    controls.settled("tab", "c4", b"x" * 2 * MAX_KEPT_BYTES, 4.0)
    assert controls.repeat("tab", "c3", 4.0) is None
    assert controls.repeat("tab", "c4", 4.0) is not None, "nothing runs twice"
    assert controls.expired(4.1 + KEPT_S) == []
    assert controls.repeat("tab", "c4", 4.0) is None, "forgotten, not only hidden"


def test_an_initialize_is_late_once_and_stays_in_flight() -> None:
    """The CLI takes it once: its answer counts whenever it comes."""
    controls = Controls()
    found = controls.ask(ASKER, "tab", "c1", Initialize(), 0.0)
    assert found is not None
    cli_id, asked = found
    assert controls.expired(DEADLINE_S) == [asked]
    assert controls.expired(10 * DEADLINE_S) == []
    assert controls.next_deadline is None
    controls.replied(asked, b"{}", DEADLINE_S)
    assert isinstance(asked.control, Initialize)
    assert controls.answered(cli_id) is asked
