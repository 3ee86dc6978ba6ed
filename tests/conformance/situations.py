"""All situations that the simulator and the real CLI are put through, by name.

To add one: write a function in the ``situations_*`` module that fits, decorate it, run the suite, read what it says.
Callers: ``recording``, ``test_conformance``.
"""

from tests.conformance import (
    situations_beside,
    situations_binding,
    situations_controls,
    situations_ends,
    situations_limits,
    situations_options,
    situations_turns,
)
from tests.conformance.stage import SITUATIONS

__all__ = [
    "SITUATIONS",
    "situations_beside",
    "situations_binding",
    "situations_controls",
    "situations_ends",
    "situations_limits",
    "situations_options",
    "situations_turns",
]
