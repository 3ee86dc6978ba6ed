"""Launch profiles that nobody configured: counted by hash, told once each, held back while they do not start.

Pure: ``now`` is seconds of a monotonic clock.  Owner: ``broker.pool.pool.Pool``.  Everything here is bounded, because
clients choose the profiles: they get no spares for them, and no label without end.
"""

from collections import OrderedDict
from dataclasses import dataclass

from broker.config.launch_profile import OTHER, LaunchProfile
from broker.pool.backoff import delay_s

MAX_HASHES = 50
"""So many are counted and logged by their own hash, the first that come; the rest as ``other``."""
MAX_FAILING = 256
"""So many that did not start are remembered; the longest untouched goes first."""


@dataclass(slots=True)
class _Failing:
    words: str
    failures: int = 0
    not_before: float = 0.0


class UnknownProfiles:
    """What is remembered of them, while the broker runs."""

    def __init__(self) -> None:
        self._known: set[str] = set()
        self._failing: OrderedDict[str, _Failing] = OrderedDict()

    def met(self, profile: LaunchProfile) -> tuple[str, bool]:
        """Somebody asks for ``profile``: the label to count it by, and whether it is to be logged now."""
        if profile.hash in self._known:
            return profile.hash, False
        if len(self._known) >= MAX_HASHES:
            return OTHER, False
        self._known.add(profile.hash)
        return profile.hash, True

    def failed(self, profile: LaunchProfile, words: str, now: float, jitter: float) -> None:
        """The CLI ended by itself at the start, with these words.  ``jitter`` is a random number in 0..1."""
        failing = self._failing.setdefault(profile.hash, _Failing(words))
        self._failing.move_to_end(profile.hash)
        failing.words = words
        failing.failures += 1
        failing.not_before = now + delay_s(failing.failures, jitter)
        if len(self._failing) > MAX_FAILING:
            self._failing.popitem(last=False)

    def started(self, profile: LaunchProfile) -> None:
        """A process of it came up."""
        self._failing.pop(profile.hash, None)

    def held_back(self, profile: LaunchProfile, now: float) -> str | None:
        """What the CLI said when it last failed to start, as long as it is not tried again; else None."""
        failing = self._failing.get(profile.hash)
        return failing.words if failing is not None and now < failing.not_before else None
