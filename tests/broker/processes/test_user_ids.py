"""The ledger of system user ids: never the same one for two living directories."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from broker.processes.user_ids import UserIds

STEPS = st.lists(st.one_of(st.just("take"), st.integers(0, 30)), max_size=60)
"""Take an id for a new directory, or remove the living directory of that place."""


@given(STEPS, st.integers(1, 6))
def test_living_directories_never_share_an_id(steps: list[str | int], size: int) -> None:
    """Whatever is made and removed: an id has one living directory, and None comes only when all are taken."""
    living: dict[Path, int] = {}
    ids = UserIds(range(500, 500 + size), living.__contains__)
    for number, step in enumerate(steps):
        if isinstance(step, int):
            for folder in list(living)[step : step + 1]:
                del living[folder]
            continue
        folder = Path(f"/s/{number}")
        user = ids.take(folder)
        assert (user is None) == (len(living) == size)
        if user is not None:
            assert user in ids
            assert user not in living.values()
            living[folder] = user


def test_an_id_comes_back_as_late_as_possible() -> None:
    """Whoever leaves a file in /tmp meets a stranger with the same id only after all the others were used."""
    ids = UserIds(range(1, 5), lambda _: False)
    assert [ids.take(Path("/s")) for _ in range(6)] == [1, 2, 3, 4, 1, 2]


def test_what_an_earlier_run_gave_out_is_taken() -> None:
    """A directory that survived keeps its id for itself."""
    ids = UserIds(range(1, 4), lambda folder: folder == Path("/kept"))
    ids.adopt(2, Path("/kept"))
    assert [ids.take(Path("/s")) for _ in range(4)] == [1, 3, 1, 3]
