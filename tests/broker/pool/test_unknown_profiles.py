"""Profiles that nobody configured: bounded counting, one log line each, and no start storm."""

from broker.config.launch_profile import OTHER, LaunchProfile, SpawnOptions
from broker.pool.backoff import BACKOFF_BASE_S, BACKOFF_CAP_S, delay_s
from broker.pool.unknown_profiles import MAX_FAILING, MAX_HASHES, UnknownProfiles


def profile(turns: int) -> LaunchProfile:
    return LaunchProfile("sonnet", SpawnOptions(max_turns=turns))


def test_each_is_told_once_and_counted_by_its_hash() -> None:
    """The same wish again has the same label and is not logged again."""
    unknown = UnknownProfiles()
    assert unknown.met(profile(1)) == (profile(1).hash, True)
    assert unknown.met(profile(2)) == (profile(2).hash, True)
    assert unknown.met(profile(1)) == (profile(1).hash, False)


def test_hashes_are_bounded() -> None:
    """A client that makes up profiles fills neither the metrics nor the log; those that came first keep their label."""
    unknown = UnknownProfiles()
    for turns in range(1, MAX_HASHES + 1):
        assert unknown.met(profile(turns))[1]
    for turns in range(MAX_HASHES + 1, 2 * MAX_HASHES):
        assert unknown.met(profile(turns)) == (OTHER, False)
    assert unknown.met(profile(1)) == (profile(1).hash, False)


def test_what_does_not_start_is_held_back() -> None:
    """Twice as long each time, with the CLI's last words; others go on, and a success forgets it all."""
    unknown, now = UnknownProfiles(), 0.0
    for count in range(10):
        wait = min(BACKOFF_CAP_S, BACKOFF_BASE_S * 2**count)
        unknown.failed(profile(1), f"error {count}", now, 1.0)
        assert unknown.held_back(profile(1), now + wait - 0.01) == f"error {count}"
        assert unknown.held_back(profile(1), now + wait) is None
        assert unknown.held_back(profile(2), now) is None
        now += 1000.0
    unknown.started(profile(1))
    unknown.failed(profile(1), "error", now, 0.0)
    assert unknown.held_back(profile(1), now + BACKOFF_BASE_S / 2) is None


def test_failing_profiles_are_bounded() -> None:
    """The one that was not tried for the longest time is forgotten."""
    unknown = UnknownProfiles()
    unknown.failed(profile(1), "first", 0.0, 1.0)
    for turns in range(2, MAX_FAILING + 2):
        unknown.failed(profile(turns), "later", 0.0, 1.0)
        if turns == MAX_FAILING:
            unknown.failed(profile(1), "again", 0.0, 1.0)
    assert unknown.held_back(profile(1), 0.1) == "again"
    assert unknown.held_back(profile(2), 0.1) is None


def test_the_delay_is_bounded_and_jittered() -> None:
    """From half to all of it, for any number of failures."""
    assert [delay_s(n, 1.0) for n in (1, 2, 3)] == [0.5, 1.0, 2.0]
    assert delay_s(2, 0.0) == 0.5
    assert delay_s(10_000, 1.0) == BACKOFF_CAP_S
