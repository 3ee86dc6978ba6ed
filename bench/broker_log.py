"""What a broker's log must not tell of: exceptions and errors.

Pure.  Callers: ``bench.chaos.aftermath``, and the tests' kit at the end of each broker.
"""

import json
from collections.abc import Collection
from typing import Any, Final

RAW: Final = ("Traceback (most recent call last)", "Fatal Python error")
"""What the interpreter itself writes, past the log."""


def bugs(text: str, expected: Collection[str] = ()) -> list[str]:
    """The lines of ``text`` with an exception, or of level error; ``expected``: names of events that may be so."""
    return [line for line in text.splitlines() if _is_bug(line, expected)]


def _is_bug(line: str, expected: Collection[str]) -> bool:
    if any(word in line for word in RAW):
        return True
    # Most lines tell of neither: only a suspect is decoded.
    if '"exception":' not in line and not any(f'"level":"{level}"' in line for level in ("error", "critical")):
        return False
    try:
        told: dict[str, Any] = json.loads(line)
    except ValueError:  # cut off in its middle
        return True
    is_bad = "exception" in told or told.get("level") in ("error", "critical")
    return is_bad and told.get("event") not in expected
