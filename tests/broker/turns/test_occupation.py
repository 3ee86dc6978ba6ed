"""Whether the CLI is at work, and how long that is believed."""

import pytest

from broker.turns.occupation import GRACE_S, Occupation


@pytest.mark.parametrize(
    ("state", "is_busy"), [("running", True), ("requires_action", True), ("idle", False), ("", False)]
)
def test_it_says_so_itself(state: str, is_busy: bool) -> None:
    """Two states mean work; whatever else it says does not."""
    occupation = Occupation(is_busy=not is_busy)
    occupation.tell(state, None)
    assert occupation.is_busy is is_busy


def test_work_of_its_own_is_waited_for_longer() -> None:
    """A turn that nobody asked for ends with its own result, within the time of a turn."""
    occupation = Occupation()
    occupation.tell("running", 3600.0)
    assert not occupation.give_up(3599.0)
    assert occupation.give_up(3600.0)
    assert not occupation.is_busy


def test_after_a_result_it_is_soon_idle() -> None:
    """A CLI that never says so is not waited for: messages go on after a few seconds."""
    occupation = Occupation()
    occupation.tell("running", None)
    occupation.result(10.0)
    assert not occupation.give_up(10.0 + GRACE_S - 0.1)
    assert occupation.give_up(10.0 + GRACE_S)
    assert not occupation.give_up(99.0), "once is enough"


def test_what_it_began_by_itself_is_its_own_until_a_result() -> None:
    """A client's turn is not, nor what follows a result."""
    occupation = Occupation()
    seen: list[bool] = []
    for state, own_until in (("running", None), ("idle", 9.0), ("running", 9.0), ("requires_action", 9.0)):
        occupation.tell(state, own_until)
        seen.append(occupation.is_own)
    occupation.result(2.0)
    assert [*seen, occupation.is_own] == [False, False, True, True, False]
