"""Cancels a coroutine at one of its suspensions, the same one each time: fault injection for everything that awaits.

Callers: the tests of cancellation.  ``await injector.drive(coroutine)`` counts the suspensions of that coroutine, not
those of tasks that it starts, and strikes at the one that was asked for.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import anyio

from tests.kit.broker import ROOT
from tests.soak import IS_SOAK

How = Literal["scope", "task", "served"]
WAYS: Final[tuple[How, ...]] = ("scope", "task", "served")
"""A cancel scope; ``task.cancel()``; the same in the moment in which what is awaited has just come."""

Place = tuple[tuple[str, int], ...]
"""The awaits of this tree that a suspension lies in, outermost first: function and line; last which arrival it is."""
QUICK_ARRIVALS: Final = 2
_OWN: Final = (f"{ROOT}/broker/", f"{ROOT}/tests/")


@dataclass
class Injector:
    """One run.  ``at``: the suspension to strike at, by its number from 1 or its place; None counts only."""

    at: int | Place | None = None
    how: How = "scope"
    cancel_scope: Callable[[], None] | None = None
    """What ends the coroutine in its own program, where that is not the scope that ``drive`` makes."""
    steps: int = 0
    places: list[Place] = field(default_factory=list)
    _arrivals: Counter[Place] = field(default_factory=Counter)
    struck_at: Place | None = None
    on_step: Callable[[], None] = lambda: None
    is_cancelled: bool = False
    """The coroutine has ended by the cancel."""

    @property
    def has_struck(self) -> bool:
        """Whether the suspension was reached."""
        return self.struck_at is not None

    async def drive(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        """Run it to its end, whichever that is."""
        task = asyncio.current_task()
        assert task is not None
        with anyio.CancelScope() as scope:
            try:
                await _Counted(self, coroutine, task, scope)
            except asyncio.CancelledError:
                if not self.has_struck or self.how == "scope":
                    raise
                self.is_cancelled = True
                task.uncancel()
        self.is_cancelled = self.is_cancelled or scope.cancelled_caught

    def suspended(
        self, coroutine: Coroutine[Any, Any, Any], awaited: Any, task: "asyncio.Task[Any]", scope: anyio.CancelScope
    ) -> None:  # fmt: skip
        """The coroutine waits for ``awaited``."""
        self.steps += 1
        where = place(coroutine)
        self._arrivals[where] += 1
        where = (*where, ("arrival", self._arrivals[where]))
        self.places.append(where)
        self.on_step()
        if self.has_struck or self.at is None or self.at not in (self.steps, where):
            return
        self.struck_at = where
        if self.how == "scope":
            (self.cancel_scope or scope.cancel)()
        elif self.how == "served" and awaited is not None:
            awaited.add_done_callback(lambda _: task.cancel())
        else:
            task.cancel()


class _Counted:
    """An awaitable that hands on what a coroutine waits for."""

    def __init__(
        self, injector: Injector, coroutine: Coroutine[Any, Any, Any], task: "asyncio.Task[Any]",
        scope: anyio.CancelScope,
    ) -> None:  # fmt: skip
        self._injector, self._coroutine, self._task, self._scope = injector, coroutine, task, scope

    def __await__(self) -> Generator[Any, Any, Any]:
        resume: Callable[[Any], Any] = self._coroutine.send
        value: Any = None
        while True:
            try:
                awaited = resume(value)
            except StopIteration as end:
                return end.value
            self._injector.suspended(self._coroutine, awaited, self._task, self._scope)
            try:
                value = yield awaited
                resume = self._coroutine.send
            except BaseException as error:  # noqa: BLE001 - handed on as it is
                resume, value = self._coroutine.throw, error


def place(coroutine: object) -> Place:
    """Where a suspended coroutine waits, as far as its awaits lie in this tree."""
    found: list[tuple[str, int]] = []
    while coroutine is not None:
        frame = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "gi_frame", None)
        if frame is not None and frame.f_code.co_filename.startswith(_OWN):
            found.append((frame.f_code.co_qualname, frame.f_lineno))
        coroutine = getattr(coroutine, "cr_await", None) or getattr(coroutine, "gi_yieldfrom", None)
    return tuple(found)


async def every_step(
    run: Callable[[Injector], Coroutine[Any, Any, None]], ways: Iterable[How] = WAYS
) -> AsyncIterator[Injector]:  # fmt: skip
    """Run a scenario again and again, cancelled at each of its suspensions in each way; yields after each run.

    The first run is not cancelled.  In the quick size each place is struck when it is reached for the first times; in
    the full size each suspension, until a run ends before the one that was meant.
    """
    probe = Injector()
    await run(probe)
    yield probe
    places = [where for where in probe.places if where[-1][1] <= QUICK_ARRIVALS]
    for how in ways:
        at = 0
        while at < len(places) or IS_SOAK:
            injector = Injector(at + 1 if IS_SOAK else places[at], how)
            await run(injector)
            yield injector
            at += 1
            if IS_SOAK and not injector.has_struck:
                break
