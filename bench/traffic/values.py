"""The values of a sweep: ``5,10,20`` or ``10..100:10``.  Pure.

Caller: ``bench.sweep``.
"""

import math
from typing import Final

MOST: Final = 100


def values_of(text: str) -> list[float]:
    """Ascending, each once, all above 0, at most ``MOST``.  Raises ``ValueError`` that says what is wrong."""
    found: set[float] = set()
    for part in text.split(","):
        found.update(_range(part) if ".." in part else [_number(part)])
        if len(found) > MOST:
            raise ValueError(f"{text!r} has more than {MOST} values")
    return sorted(found)


def _range(text: str) -> list[float]:
    ends, _, step_text = text.partition(":")
    first_text, _, last_text = ends.partition("..")
    first, last, step = _number(first_text), _number(last_text), _number(step_text or "1")
    if last < first:
        raise ValueError(f"{text!r} ends before it begins")
    # A little more than a whole number of steps is one that floating point has made so.
    count = math.floor((last - first) / step + 1e-9) + 1
    if count > MOST:
        raise ValueError(f"{text!r} has more than {MOST} values")
    return [round(first + number * step, 9) for number in range(count)]


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{text!r} is no number: 5,10,20 or FIRST..LAST:STEP") from None
    if not (0 < value < math.inf):
        raise ValueError(f"{text!r} is not above 0")
    return value
