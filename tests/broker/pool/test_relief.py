"""Which idle conversations give their processes back: the least recently used, first of those who have most."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from broker.pool.relief import Idle, chosen


def idle(*rows: tuple[str, float]) -> list[Idle]:
    return [Idle(tenant, last_active) for tenant, last_active in rows]


def test_the_least_recently_used_goes_first() -> None:
    """Among tenants that have no more than their share."""
    found = chosen(idle(("a", 3), ("b", 1), ("c", 2)), Counter("abc"), ["d"], 4, 2)
    assert [each.tenant for each in found] == ["b", "c"]


def test_whoever_has_more_than_a_share_gives_first() -> None:
    """And only as long as that is so."""
    rows = idle(("a", 10), ("a", 11), ("a", 12), ("b", 1))
    found = chosen(rows, Counter({"a": 3, "b": 1}), ["c"], 4, 3)
    assert [(each.tenant, each.last_active) for each in found] == [("a", 10), ("a", 11), ("b", 1)]


ROWS = st.lists(st.tuples(st.sampled_from("abcd"), st.floats(0, 100)), max_size=12)


@given(ROWS, st.integers(-2, 15), st.integers(1, 12))
def test_never_more_than_asked_for_and_none_twice(rows: list[tuple[str, float]], count: int, limit: int) -> None:
    """Whoever is left has not been idle for longer than somebody of the same tenant who was chosen."""
    given_rows = idle(*rows)
    found = chosen(given_rows, Counter(tenant for tenant, _ in rows), ["x"], limit, count)
    assert len(found) == max(0, min(count, len(rows)))
    assert len({id(each) for each in found}) == len(found)
    for tenant in "abcd":
        taken = [each.last_active for each in found if each.tenant == tenant]
        left = [each.last_active for each in given_rows if each.tenant == tenant and each not in found]
        assert not taken or not left or max(taken) <= min(left)
