"""What is known to differ, each with its reason: the only excuses that the comparison accepts.

A test fails when an entry excuses nothing any more.  Caller: ``comparison``.
"""

from typing import Final

OPTIONAL: Final[dict[str, str]] = {}
"""Kind of frame that 2.1.329 sends and the simulator need not: why."""

RACING: Final[dict[str, str]] = {}
"""Kind of frame whose place among the others depends on timing: why."""

UNCOUNTED: Final[dict[str, str]] = {}
"""Kind of frame whose number depends on timing: why."""

FOLLOWS_NEWER: Final[dict[str, str]] = {}
"""What 2.1.329 does and 2.1.197 does not; the simulator follows 2.1.329."""
