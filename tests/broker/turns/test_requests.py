"""Requests of the CLI: the first answer wins, nobody waits for ever, and everything is bounded."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from broker.turns.requests import MAX_PENDING, REMEMBERED, Outcome, Pending, PendingRequests
from protocol.codes import ErrorCode
from protocol.errors import ClientError
from tests.soak import size

IDS = st.sampled_from([f"r{number}" for number in range(6)])
OUTCOMES: list[Outcome] = ["allowed", "denied", "expired", "withdrawn"]


def prompt(request_id: str, deadline: float = 10.0) -> Pending[str]:
    is_of_turn = int(request_id[1:]) % 2 == 0
    return Pending(request_id, f'{{"request_id":"{request_id}"}}'.encode(), b"{}", deadline, is_of_turn=is_of_turn)


def code(requests: PendingRequests[str], request_id: str) -> ErrorCode:
    with pytest.raises(ClientError) as caught:
        requests.find(request_id)
    assert caught.value.ref == request_id
    return caught.value.code


class Prompts(RuleBasedStateMachine):
    """The pending prompts in order, and the outcome of those that are settled."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: PendingRequests[str] = PendingRequests()
        self.pending: dict[str, float] = {}
        self.settled: dict[str, Outcome] = {}

    @rule(request_id=IDS, deadline=st.integers(0, 9))
    def add(self, request_id: str, deadline: float) -> None:
        assert self.requests.has_room_for(request_id) == (request_id not in self.pending)
        if request_id not in self.pending:
            self.requests.add(prompt(request_id, deadline))
            self.pending[request_id] = deadline

    @rule(request_id=IDS)
    def find(self, request_id: str) -> None:
        if request_id in self.pending:
            assert self.requests.find(request_id).request_id == request_id
        else:
            known = request_id in self.settled
            assert code(self.requests, request_id) is (
                ErrorCode.ALREADY_ANSWERED if known else ErrorCode.UNKNOWN_REQUEST
            )  # fmt: skip

    @rule(request_id=IDS, outcome=st.sampled_from(OUTCOMES))
    def settle(self, request_id: str, outcome: Outcome) -> None:
        found = self.requests.settle(request_id, outcome)
        assert (found is not None) == (request_id in self.pending)
        if self.pending.pop(request_id, None) is not None:
            self.settled[request_id] = outcome

    @rule(now=st.integers(0, 9))
    def expire(self, now: float) -> None:
        due = [request_id for request_id, deadline in self.pending.items() if deadline <= now]
        assert [found.request_id for found in self.requests.expired(now)] == due
        assert len(self.requests) == len(self.pending)

    @rule(with_turn_only=st.booleans())
    def withdraw(self, with_turn_only: bool) -> None:
        gone = [name for name in self.pending if not with_turn_only or prompt(name).is_of_turn]
        assert [found.request_id for found in self.requests.withdraw(with_turn_only=with_turn_only)] == gone
        for name in gone:
            self.settled[name] = "withdrawn"
            del self.pending[name]

    @invariant()
    def agree(self) -> None:
        assert len(self.requests) == len(self.pending)
        assert self.requests.all == [prompt(request_id, deadline) for request_id, deadline in self.pending.items()]
        assert all(self.requests.get(request_id) is not None for request_id in self.pending)
        assert self.requests.next_deadline == min(self.pending.values(), default=None)


def test_the_prompts_are_their_model() -> None:
    """Add, find, settle, expire, withdraw: in any order each prompt is settled once and told apart afterwards."""
    run_state_machine_as_test(
        Prompts, settings=settings(max_examples=size(20, 60), stateful_step_count=30, deadline=None)
    )


def test_a_late_answer_is_told_the_outcome() -> None:
    """Whoever comes second hears how it ended; a prompt that never was is unknown."""
    requests: PendingRequests[str] = PendingRequests()
    requests.add(prompt("r1"))
    assert requests.settle("r1", "denied") == prompt("r1")
    assert requests.settle("r1", "allowed") is None
    with pytest.raises(ClientError, match="settled: denied"):
        requests.find("r1")
    assert code(requests, "r2") is ErrorCode.UNKNOWN_REQUEST


def test_a_prompt_expires_at_its_deadline() -> None:
    """At the deadline it is due, and it stays pending until it is settled."""
    requests: PendingRequests[str] = PendingRequests()
    requests.add(prompt("r1", 10.0))
    requests.add(prompt("r2", 5.0))
    assert requests.next_deadline == 5.0
    assert requests.expired(4.999) == []
    assert requests.expired(5.0) == requests.expired(5.0) == [prompt("r2", 5.0)]
    requests.settle("r2", "expired")
    assert requests.next_deadline == 10.0


def test_the_bounds() -> None:
    """No more than so many wait, and no more than so many settled ones are remembered."""
    requests: PendingRequests[str] = PendingRequests()
    for number in range(MAX_PENDING):
        assert requests.has_room_for(f"r{number}")
        requests.add(prompt(f"r{number}"))
    assert not requests.has_room_for("r999")
    requests.settle("r0", "allowed")
    assert requests.has_room_for("r999")
    assert not requests.has_room_for("r1")
    for number in range(REMEMBERED + 1):
        requests.add(prompt(f"s1{number}"))
        requests.settle(f"s1{number}", "allowed")
    assert code(requests, "s10") is ErrorCode.UNKNOWN_REQUEST
    assert code(requests, f"s1{REMEMBERED}") is ErrorCode.ALREADY_ANSWERED
