"""Those who wait for a process: told their place in the queue, woken when they are served or refused.

Owner: ``broker.pool.pool.Pool``, whose ledger decides who is served when.  An entry lasts as long as its ``wait``.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import anyio

from broker.config.launch_profile import Choice
from broker.pool.slot import Waiter
from broker.processes.child import Again


@dataclass(slots=True)
class Wish:
    """What somebody waits for; ``on_position`` is told the place in the queue, from 1, at each change."""

    choice: Choice
    again: Again | None
    on_position: Callable[[int], None]
    is_settled: anyio.Event = field(default_factory=anyio.Event)


class WaitingRoom:
    """Who waits now, and for what."""

    def __init__(self) -> None:
        self._wishes: dict[Waiter, Wish] = {}

    def wish(self, waiter: Waiter) -> Wish:
        """What ``waiter``, who is here, waits for."""
        return self._wishes[waiter]

    def settle(self, waiter: Waiter) -> None:
        """It was served, or will not be; harmless when it is not here any more."""
        if waiter in self._wishes:
            self._wishes[waiter].is_settled.set()

    def tell(self, queue: Iterable[Waiter]) -> None:
        """Tell everybody in the ``queue`` the place."""
        for position, waiter in enumerate(queue, 1):
            if waiter in self._wishes:
                self._wishes[waiter].on_position(position)

    async def wait(self, waiter: Waiter, wish: Wish, timeout_s: float, changed: Callable[[], None]) -> bool:
        """Stay until settled; False after ``timeout_s``.  ``changed`` is called as soon as the room holds the wish.

        A cancel leaves the room; whether the ledger served the waiter in that moment is the caller's to see.
        """
        self._wishes[waiter] = wish
        changed()
        try:
            with anyio.move_on_after(timeout_s):
                await wish.is_settled.wait()
        finally:
            del self._wishes[waiter]
        return wish.is_settled.is_set()
