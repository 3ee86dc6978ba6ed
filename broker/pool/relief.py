"""Which idle conversations give their processes back when others wait for one.

Pure.  Caller: ``broker.sessions.registry``, when the pool has no room.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, eq=False)
class Idle:
    """A conversation that could rest.  ``last_active``: monotonic seconds."""

    tenant: str
    last_active: float


def chosen(idle: Sequence[Idle], held: Counter[str], waiting: Collection[str], limit: int, count: int) -> list[Idle]:
    """At most ``count`` of them, the least recently used first, but first those of tenants above their share.

    ``held``: processes of each tenant; ``waiting``: tenants that wait; ``limit``: processes in all.  A share is what
    each would have if all who hold or wait had the same.
    """
    share = limit / max(1, len({*held, *waiting}))
    left, now_held = sorted(idle, key=lambda each: each.last_active), Counter(held)
    found: list[Idle] = []
    while left and len(found) < count:
        each = next((each for each in left if now_held[each.tenant] > share), left[0])
        left.remove(each)
        now_held[each.tenant] -= 1
        found.append(each)
    return found
