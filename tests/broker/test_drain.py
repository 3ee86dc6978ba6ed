"""The clock of an ending."""

from hypothesis import given
from hypothesis import strategies as st

from broker.drain import Drain

PROMISE_S = 3.0


@given(st.floats(0, 1e6), st.floats(0, 86400))
def test_everything_comes_in_its_order_and_within_the_promise(began: float, turns_s: float) -> None:
    """Turns, processes, sockets, the program: each has time after the one before, all before the promise."""
    drain = Drain(began, turns_s)
    assert began + turns_s < drain.kills_at < drain.cuts_at < drain.gives_up_at < began + turns_s + PROMISE_S
