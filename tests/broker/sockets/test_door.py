"""Who is let in at a port: by file descriptor, by number, and a few whatever there is."""

from broker.metrics import Metrics
from broker.sockets.door import Door


def refused(metrics: Metrics) -> float | None:
    """How many were not."""
    return metrics.registry.get_sample_value("broker_limits_refused_total", {"limit": "descriptors"})


def test_the_bound_is_asked_for_each_socket() -> None:
    """It follows what holds now; without one nobody is refused."""
    metrics, bound = Metrics(), [None, 100, 200]
    door = Door("public", metrics, lambda: bound.pop(0))
    assert [door.enter(150) for _ in range(3)] == [True, False, True]
    assert refused(metrics) == 1


def test_a_place_is_free_again_when_somebody_has_left() -> None:
    """Never more than the most at a time."""
    metrics = Metrics()
    door = Door("admin", metrics, lambda: None, most=2)
    assert [door.enter(9) for _ in range(3)] == [True, True, False]
    door.leave()
    assert [door.enter(9) for _ in range(2)] == [True, False]
    assert refused(metrics) == 2


def test_some_are_spared() -> None:
    """The first of a port with a number of its own come in where tenants' sockets have taken all descriptors."""
    metrics = Metrics()
    door = Door("admin", metrics, lambda: 100, most=4, spared=2)
    assert [door.enter(100) for _ in range(3)] == [True, True, False]
    assert [door.enter(99) for _ in range(3)] == [True, True, False]
