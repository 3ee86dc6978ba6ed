"""How long MCP servers in a client may take to introduce themselves."""

from broker.turns.introductions import RETRY_S, Introductions

LIMIT_S = 5.0


def test_one_deadline_for_all_of_it() -> None:
    """From ``initialize`` to the first list of tools; what comes later has a deadline of its own."""
    introductions = Introductions(LIMIT_S)
    times = (("initialize", 0.0), ("notifications/initialized", 3.0), ("initialize", 4.0), ("tools/list", 4.5))
    assert [introductions.deadline("a", method, now) for method, now in times] == [LIMIT_S] * 4
    assert introductions.deadline("b", "initialize", 4.5) == 4.5 + LIMIT_S, "another server, another deadline"
    assert introductions.deadline("a", "tools/list", 4.6) == 4.6 + LIMIT_S
    assert introductions.deadline("a", "resources/list", 60.0) == 60.0 + LIMIT_S


def test_a_retry_is_not_asked() -> None:
    """Neither behind a server that was given up nor at its very deadline; a later attempt is."""
    introductions = Introductions(LIMIT_S)
    introductions.deadline("a", "initialize", 0.0)
    assert introductions.deadline("a", "initialize", LIMIT_S) is None
    assert introductions.give_up("a", LIMIT_S)
    assert introductions.deadline("a", "initialize", LIMIT_S + 0.9 * RETRY_S) is None
    assert not introductions.give_up("a", LIMIT_S + 0.9 * RETRY_S)
    assert introductions.deadline("a", "initialize", LIMIT_S + 1.8 * RETRY_S) is None
    assert introductions.deadline("a", "initialize", 20.0) == 20.0 + LIMIT_S


def test_an_introduction_that_never_ended_is_begun_again() -> None:
    """Its deadline is long over."""
    introductions = Introductions(LIMIT_S)
    introductions.deadline("a", "initialize", 0.0)
    assert introductions.deadline("a", "initialize", 60.0) == 60.0 + LIMIT_S
    introductions.reset()
    assert introductions.deadline("a", "initialize", 61.0) == 61.0 + LIMIT_S
