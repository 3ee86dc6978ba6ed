"""How many descriptors stay free for what is no tenant's socket."""

import resource

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.sockets.headroom import ACCEPT_BATCH, OWN, first_refused


@pytest.mark.parametrize(("limit", "processes", "expected"), [(256, 32, 192), (1024, 32, 832), (65536, 100, 65072)])
def test_what_is_kept_free(limit: int, processes: int, expected: int) -> None:
    """Some for the broker itself and four for each process that may run, but never more than a quarter."""
    assert first_refused(limit, processes) == expected


def test_without_a_limit_nothing_is_refused() -> None:
    """``ulimit -n unlimited``."""
    assert first_refused(resource.RLIM_INFINITY, 32) is None


@given(st.integers(4 * OWN, 2**20), st.integers(1, 10_000))
def test_there_is_always_room_for_both(limit: int, processes: int) -> None:
    """Sockets get three quarters at least, and two batches that nobody has judged yet take less than what is free."""
    found = first_refused(limit, processes)
    assert found is not None
    assert found >= limit * 3 // 4
    assert limit - found >= 2 * ACCEPT_BATCH
