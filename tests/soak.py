"""How large a test is: quick in `make test`, full in `make soak` (which sets ``SOAK``).

Callers: tests whose counts are the point.  The figures of the latest full run are in docs/reliability.md.
"""

import os
from typing import Final

IS_SOAK: Final = bool(os.environ.get("SOAK"))
LONG_S: Final = 1500 if IS_SOAK else 60
"""For ``pytest.mark.timeout``."""


def size(quick: int, full: int) -> int:
    """The count for this run."""
    return full if IS_SOAK else quick
