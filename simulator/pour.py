"""Text deltas from prepared buffers: a source of lines that is not the limit of what reads them.

Unpaced, several lines go out with each write.  Paced, each line is a write of its own and begins with the moment just
before it: nanoseconds of ``time.monotonic``, which is one clock in all processes of a machine.  No ledger holds them,
and they are no part of the reply.  Caller: ``simulator.reply``, in a turn.
"""

import itertools
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from simulator.ids import new_uuid
from simulator.output import Output

MARK: Final = "@"
DIGITS: Final = 19
PREPARED: Final = 256
PER_WRITE: Final = 64
LOOK_S: Final = 0.1
_STEP: Final = 37
"""Sizes follow each other in steps of this many bytes, modulo their range: all of them come, in no order."""


class Pour(NamedTuple):
    """So many lines of ``low`` to ``high`` bytes; ``rate`` per second, 0: as fast as they go."""

    lines: int
    low: int
    high: int
    rate: float


def run(
    wanted: Pour, around: tuple[str, str], output: Output, pause: Callable[[float], None], is_over: Callable[[], bool]
) -> None:
    """Write them.  ``around``: what stands before the text of a line, and what between it and the line's uuid.

    ``pause`` lets seconds pass and looks at stdin, at least every 0.1 s; what it raises ends the lines, and so does
    ``is_over``.
    """
    if wanted.rate:
        _paced(wanted, around, output, pause, is_over)
    else:
        _unpaced(wanted, around, output, pause, is_over)


def prepared(wanted: Pour, around: tuple[str, str]) -> list[tuple[bytes, bytes]]:
    """Lines, each in two parts: the 19 digits of the moment belong in between.

    A line that the envelope and the moment alone make longer than ``high`` is as long as these are.
    """
    head, tail = around
    before = f"{head}{MARK}".encode()
    found = []
    for number in range(PREPARED):
        end = f'{tail}{new_uuid()}"}}\n'.encode()
        size = wanted.low + number * _STEP % (wanted.high - wanted.low + 1)
        filling = b" " + b"x" * (size - len(before) - DIGITS - len(end) - 1)
        found.append((before, filling + end))
    return found


def _unpaced(
    wanted: Pour, around: tuple[str, str], output: Output, pause: Callable[[float], None], is_over: Callable[[], bool]
) -> None:
    lines = [before + b"0" * DIGITS + after for before, after in prepared(wanted, around)]
    buffers = [b"".join(lines[start : start + PER_WRITE]) for start in range(0, PREPARED, PER_WRITE)]
    looked = time.monotonic()
    whole, rest = divmod(wanted.lines, PER_WRITE)
    for buffer in itertools.islice(itertools.cycle(buffers), whole):
        output.raw(buffer)
        if (now := time.monotonic()) - looked >= LOOK_S:
            pause(0)
            looked = now
            if is_over():
                return
    if rest:
        output.raw(b"".join(lines[:rest]))


def _paced(
    wanted: Pour, around: tuple[str, str], output: Output, pause: Callable[[float], None], is_over: Callable[[], bool]
) -> None:
    began = looked = time.monotonic()
    lines = itertools.islice(itertools.cycle(prepared(wanted, around)), wanted.lines)
    for number, (before, after) in enumerate(lines):
        due = began + number / wanted.rate
        now = time.monotonic()
        if now - looked >= LOOK_S or due - now >= LOOK_S:
            pause(max(0.0, due - now))
            looked = time.monotonic()
            if is_over():
                return
        elif due > now:
            time.sleep(due - now)
        output.raw(b"%s%019d%s" % (before, time.monotonic_ns(), after))
