"""The ledger of system user ids that ``pool.isolation = "uid"`` gives out, one for each session's directory.

Owner: the ``Isolation`` of ``broker.processes.launcher``.  An id comes back when its directory is gone, and the others
are used first, so that what a session left elsewhere (in /tmp) meets a new owner as late as possible.
"""

from collections.abc import Callable
from pathlib import Path


class UserIds:
    """Gives out ``ids``.  ``lives`` says whether a directory is still there."""

    def __init__(self, ids: range, lives: Callable[[Path], bool] = Path.exists) -> None:
        self._ids = ids
        self._lives = lives
        self._next = 0
        self._given: dict[int, Path] = {}

    def __contains__(self, user: int) -> bool:
        return user in self._ids

    def adopt(self, user: int, folder: Path) -> None:
        """``folder`` has that id since an earlier run."""
        self._given[user] = folder

    def take(self, folder: Path) -> int | None:
        """An id for ``folder``; None when a living directory has each of them."""
        for step in range(len(self._ids)):
            user = self._ids[(self._next + step) % len(self._ids)]
            if user not in self._given or not self._lives(self._given[user]):
                self._next = (self._next + step + 1) % len(self._ids)
                self._given[user] = folder
                return user
        return None
