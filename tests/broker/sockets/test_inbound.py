"""Messages that are on their way: the sum is bounded, and whoever holds most pays for it."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from broker.sockets.inbound import NOTED_BYTES, Inbound
from protocol.codes import Limit

LIMIT = 10 * NOTED_BYTES
DEADLINE_S = 10.0


class Socket:
    """Stands in for a connection."""

    def __init__(self, payer: str = "acme") -> None:
        self.payer = payer
        self.held_bytes = 0
        self.progress: int | None = None
        self.refused_for = ""

    def refuse_more(self, reason: str) -> None:
        """Lets go of everything."""
        self.refused_for, self.held_bytes = reason, 0


def noted(sockets: list[Socket]) -> Counter[str]:
    """What each tenant holds."""
    found: Counter[str] = Counter()
    for each in sockets:
        if each.held_bytes >= NOTED_BYTES:
            found[each.payer] += each.held_bytes
    return found


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4 * NOTED_BYTES)), max_size=60))
def test_what_is_held_in_all_stays_below_the_limit(steps: list[tuple[int, int]]) -> None:
    """After each step of any socket the sum is at most the limit; of who held most the largest was refused."""
    refused: list[Limit] = []
    inbound = Inbound(lambda: LIMIT, refused.append)
    sockets = [Socket("abc"[number % 3]) for number in range(10)]
    for number, held in steps:
        socket = sockets[number]
        if socket.refused_for:
            continue
        socket.held_bytes = held
        before, sizes = noted(sockets), {each: each.held_bytes for each in sockets}
        gone = {each for each in sockets if each.refused_for}
        inbound.note(socket)
        assert noted(sockets).total() <= LIMIT
        now = [each for each in sockets if each.refused_for and each not in gone]
        assert len(now) <= 1  # one step is at most four of ten
        for each in now:
            assert before[each.payer] == max(before.values())
            assert all(sizes[each] >= sizes[other] for other in sockets if other.payer == each.payer)
    assert refused == [Limit.MAX_INBOUND_BYTES] * sum(bool(each.refused_for) for each in sockets)


def test_what_was_taken_meanwhile_counts_no_more() -> None:
    """Nobody is refused for messages that are with the session by now."""
    inbound, sockets = Inbound(lambda: LIMIT, lambda limit: None), [Socket() for _ in range(3)]
    for socket in sockets:
        socket.held_bytes = LIMIT // 2
        inbound.note(socket)
        socket.held_bytes = 0
    assert not any(socket.refused_for for socket in sockets)


def test_many_small_shares_of_one_are_a_large_one() -> None:
    """Who holds little on each of many sockets pays before another one whose single message is larger."""
    inbound = Inbound(lambda: LIMIT, lambda limit: None)
    many, large = [Socket("acme") for _ in range(7)], Socket("globex")
    for socket in many:
        socket.held_bytes = NOTED_BYTES
        inbound.note(socket)
    large.held_bytes = 5 * NOTED_BYTES
    inbound.note(large)
    assert not large.refused_for
    assert [each.refused_for for each in many if each.refused_for] == [f"server.max_inbound_bytes = {LIMIT}"] * 2


def test_a_message_without_progress_is_ended() -> None:
    """After the deadline, counted from the last part of it; not one that nobody takes, nor one that is small."""
    refused: list[Limit] = []
    inbound = Inbound(lambda: LIMIT, refused.append)
    still, going, whole, small = (Socket() for _ in range(4))
    for socket in (still, going, whole, small):
        socket.held_bytes, socket.progress = NOTED_BYTES, 1
        inbound.note(socket)
    whole.progress, small.held_bytes = None, NOTED_BYTES - 1
    for second in range(int(DEADLINE_S) + 1):
        assert not refused
        going.progress = second // 3 + 1
        inbound.end_stalled(float(second), DEADLINE_S)
    assert (refused, still.refused_for) == ([Limit.SEND_DEADLINE_S], "server.send_deadline_s = 10.0")
    inbound.end_stalled(DEADLINE_S + 8, DEADLINE_S)
    assert len(refused) == 1
    inbound.end_stalled(DEADLINE_S + 9, DEADLINE_S)
    assert going.refused_for
    assert not whole.refused_for
    assert not small.refused_for
