"""When an idle session gives its process back."""

from broker.config.tree import Session
from broker.sessions.rest import Rest

LIMITS = Session(detach_timeout_s=10, hibernate_after_s=100, min_resident_s=30)


def test_with_clients_it_rests_later() -> None:
    """Counted from the last answer, or from when it got its process."""
    rest = Rest(LIMITS, 0.0, 50.0)
    assert rest.due_at(0.0, has_readers=True) == 150
    assert rest.due_at(60.0, has_readers=True) == 160


def test_without_clients_it_rests_soon() -> None:
    """Counted from the last client's leaving, or from the end of the turn that ran on."""
    rest = Rest(LIMITS, 70.0, 50.0)
    assert rest.due_at(60.0, has_readers=False) == 80
    assert rest.due_at(75.0, has_readers=False) == 85


def test_whoever_is_asked_rests_as_soon_as_it_is_idle() -> None:
    """Not before it has had its process for a while; the next process is nobody else's at first."""
    rest = Rest(LIMITS, 0.0, 50.0)
    assert not rest.may_be_asked(79.0)
    assert rest.may_be_asked(80.0)
    rest.is_asked = True
    assert rest.due_at(79.0, has_readers=True) == 50
    rest.bound(90.0)
    assert rest.due_at(79.0, has_readers=True) == 190
