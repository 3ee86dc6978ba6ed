"""Which credentials the stand-ins refuse.

Callers: ``simulator.settings``, ``simulator.api_exchange``.
"""

import re
from typing import Final

_BAD: Final = re.compile(r"\bbad\b")


def is_bad(value: str) -> bool:
    """Whether ``bad`` stands in it as a word of its own; in random hexadecimal digits it comes up by itself."""
    return _BAD.search(value) is not None
