"""Conversations by key, by whose they are, and by the CLI's own id: none of it is found by looking at all of them.

Pure.  Owners: ``broker.sessions.registry`` (those that have a task), ``broker.sessions.sleepers`` (records).
"""

from collections.abc import Iterator, MutableMapping, ValuesView
from typing import TypeVar

from broker.sessions.stores import Key

T = TypeVar("T")


class Shelf(MutableMapping[Key, T]):
    """A mapping by ``(tenant, subject, id)`` that also knows whose everything is."""

    def __init__(self) -> None:
        self._all: dict[Key, T] = {}
        self._owned: dict[str, dict[str, dict[Key, T]]] = {}
        """By tenant, then by subject."""
        self._named: dict[Key, list[T]] = {}
        """By tenant, subject and the CLI's id: the oldest first, since a CLI may say any id."""

    def __getitem__(self, key: Key) -> T:
        return self._all[key]

    def __setitem__(self, key: Key, value: T) -> None:
        self._all[key] = value
        self._owned.setdefault(key[0], {}).setdefault(key[1], {})[key] = value

    def __delitem__(self, key: Key) -> None:
        del self._all[key]
        subjects = self._owned[key[0]]
        del subjects[key[1]][key]
        if not subjects[key[1]]:
            del subjects[key[1]]
        if not subjects:
            del self._owned[key[0]]

    def __iter__(self) -> Iterator[Key]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def values(self) -> ValuesView[T]:
        """All of them; as fast as a dict's."""
        return self._all.values()

    def count(self, tenant: str) -> int:
        """How many the tenant has."""
        return sum(map(len, self._owned.get(tenant, {}).values()))

    def of(self, tenant: str, subject: str | None) -> list[T]:
        """The conversations of a subject, or of the whole tenant (None)."""
        subjects = self._owned.get(tenant, {})
        if subject is not None:
            return list(subjects.get(subject, {}).values())
        return [value for owned in subjects.values() for value in owned.values()]

    def rename(self, key: Key, value: T, old: str, new: str) -> None:
        """The CLI knows the conversation by ``new`` from now on; an empty id is none.  ``new`` empty: forget it."""
        known = (key[0], key[1], old)
        if left := [each for each in self._named.pop(known, ()) if each is not value]:
            self._named[known] = left
        if new:
            self._named.setdefault((key[0], key[1], new), []).append(value)

    def named(self, tenant: str, subject: str, cli_id: str) -> T | None:
        """The subject's conversation that the CLI knows by that id."""
        return next(iter(self._named.get((tenant, subject, cli_id), ())), None)
