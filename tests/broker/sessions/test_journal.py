"""What is kept of a conversation as it happens, and what becomes of it when the store does not take it."""

from collections.abc import Iterable

import pytest

from broker.metrics import Metrics
from broker.sessions.journal import MAX_OWED, Journal
from broker.sessions.stores import Key, StoreFailed
from broker.turns.message_ids import Noted, Outcome
from protocol.codes import ErrorCode
from protocol.errors import ClientError

KEY = ("local", "ann", "conv-1")


class Memory:
    """A store that fails when it is told to."""

    def __init__(self) -> None:
        self.is_full = False
        self.records: dict[Key, bytes] = {}
        self.ids: dict[str, Noted] = {}
        self.calls = 0

    def _check(self) -> None:
        self.calls += 1
        if self.is_full:
            raise StoreFailed("full")

    def conversations(self) -> list[tuple[Key, bytes]]:
        return list(self.records.items())

    def messages(self, key: Key) -> list[tuple[str, bytes, Noted]]:
        return []

    def keep(self, key: Key, record: bytes) -> None:
        self._check()
        self.records[key] = record

    def accept(self, key: Key, message_id: str, digest: bytes, *, is_waiting: bool) -> None:
        self._check()
        self.ids[message_id] = "waiting" if is_waiting else None

    def write(self, key: Key, message_id: str) -> None:
        self._check()
        self.ids[message_id] = None

    def end(self, key: Key, outcomes: Iterable[tuple[str, Outcome]]) -> None:
        self._check()
        self.ids |= dict(outcomes)

    def forget(self, key: Key) -> None:
        self._check()
        self.records.clear()

    def settle(self) -> None:
        """Nothing is owed."""

    def close(self) -> None:
        """Nothing is open."""


def failures(metrics: Metrics, operation: str) -> float | None:
    return metrics.registry.get_sample_value("broker_store_failures_total", {"operation": operation})


def test_what_cannot_be_noted_is_not_accepted() -> None:
    """The client is told so, and may send it again."""
    store, metrics = Memory(), Metrics()
    journal = Journal(KEY, store, metrics)
    store.is_full = True
    with pytest.raises(ClientError) as caught:
        journal.accept("m-1", b"", False)
    assert (caught.value.code, caught.value.ref) == (ErrorCode.STORAGE_FAILED, "m-1")
    assert failures(metrics, "accept") == 1
    store.is_full = False
    journal.accept("m-1", b"", False)
    assert store.ids == {"m-1": None}


def test_what_waited_is_not_written_before_that_is_noted() -> None:
    """Else another run would say of it that no CLI was given it."""
    store, metrics = Memory(), Metrics()
    journal = Journal(KEY, store, metrics)
    journal.accept("m-1", b"", True)
    store.is_full = True
    with pytest.raises(ClientError) as caught:
        journal.write("m-1")
    assert (caught.value.code, caught.value.ref) == (ErrorCode.STORAGE_FAILED, "m-1")
    assert (store.ids, failures(metrics, "write")) == ({"m-1": "waiting"}, 1)
    store.is_full = False
    journal.write("m-1")
    assert store.ids == {"m-1": None}


def test_an_end_that_could_not_be_kept_is_kept_with_the_next() -> None:
    """And so is the record, in its latest form."""
    store, metrics = Memory(), Metrics()
    journal = Journal(KEY, store, metrics)
    store.is_full = True
    journal.end([("m-1", "completed")])
    journal.keep(b"one")
    journal.keep(b"two")
    assert (store.ids, store.records) == ({}, {})
    assert (failures(metrics, "end"), failures(metrics, "keep")) == (1, 2)
    store.is_full = False
    journal.end([("m-2", "failed")])
    assert store.ids == {"m-1": "completed", "m-2": "failed"}
    assert store.records == {KEY: b"two"}


def test_a_record_that_has_not_changed_costs_nothing() -> None:
    """It is made at each look at the session."""
    store = Memory()
    journal = Journal(KEY, store, Metrics())
    for _ in range(5):
        journal.keep(b"same")
    assert store.calls == 1


def test_what_is_owed_is_bounded() -> None:
    """The oldest ends are given up, and counted."""
    store, metrics = Memory(), Metrics()
    store.is_full = True
    journal = Journal(KEY, store, metrics)
    journal.end([(f"m-{number}", "completed") for number in range(MAX_OWED + 5)])
    assert failures(metrics, "give_up") == 5
    store.is_full = False
    journal.keep(b"r")
    assert list(store.ids) == [f"m-{number}" for number in range(5, MAX_OWED + 5)]


def test_what_was_never_used_is_not_forgotten() -> None:
    """The store has nothing of it, so it can owe no more than it has kept."""
    store, metrics = Memory(), Metrics()
    store.is_full = True
    Journal(KEY, store, metrics).forget()
    assert (store.calls, failures(metrics, "forget")) == (0, 0)
    Journal(KEY, store, metrics, is_used=True).forget()
    assert (store.calls, failures(metrics, "forget")) == (1, 1)


def test_without_a_store_nothing_is_kept() -> None:
    """And nothing is refused."""
    journal = Journal(KEY, None, Metrics())
    journal.accept("m-1", b"", True)
    journal.write("m-1")
    journal.end([("m-1", "completed")])
    journal.keep(b"r")
    journal.forget()
