"""Messages that are on their way: the sum is bounded, and whoever holds most pays for it."""

from hypothesis import given
from hypothesis import strategies as st

from broker.sockets.inbound import NOTED_BYTES, Inbound

LIMIT = 10 * NOTED_BYTES


class Socket:
    """Stands in for a connection."""

    def __init__(self) -> None:
        self.held_bytes = 0
        self.is_refused = False

    def refuse_more(self, limit: int) -> None:
        """Lets go of everything."""
        assert limit == LIMIT
        self.is_refused, self.held_bytes = True, 0


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4 * NOTED_BYTES)), max_size=60))
def test_what_is_held_in_all_stays_below_the_limit(steps: list[tuple[int, int]]) -> None:
    """After each step of any socket the sum is at most the limit, and only the largest were refused."""
    refused: list[int] = []
    inbound = Inbound(lambda: LIMIT, lambda: refused.append(1))
    sockets = [Socket() for _ in range(10)]
    for number, held in steps:
        socket = sockets[number]
        if socket.is_refused:
            continue
        socket.held_bytes = held
        before = {each: each.held_bytes for each in sockets}
        gone = [each for each in sockets if each.is_refused]
        inbound.note(socket)
        noted = [each.held_bytes for each in sockets if each.held_bytes >= NOTED_BYTES]
        assert sum(noted) <= LIMIT
        for each in sockets:
            if each.is_refused and each not in gone:
                assert all(before[each] >= other.held_bytes for other in sockets)
    assert len(refused) == sum(each.is_refused for each in sockets)


def test_what_was_taken_meanwhile_counts_no_more() -> None:
    """Nobody is refused for messages that are with the session by now."""
    inbound, sockets = Inbound(lambda: LIMIT, lambda: None), [Socket() for _ in range(3)]
    for socket in sockets:
        socket.held_bytes = LIMIT // 2
        inbound.note(socket)
        socket.held_bytes = 0
    assert not any(socket.is_refused for socket in sockets)
