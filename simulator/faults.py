"""The fault menu: what a child can do to its parent, on demand.

``SIMULATOR_FAULTS`` acts at the start, a directive in the user's text acts in its turn.  Everything that never ends by
itself ends after an hour, so that a forgotten process does not stay for ever.
Callers: ``simulator.cli`` (at the start), ``simulator.turn`` (in a turn).
"""

import os
import signal
import sys
import time
from typing import Final, NoReturn

from simulator import floods
from simulator.directives import Directives
from simulator.output import Output

FOREVER_S: Final = 3600.0
STDERR: Final = 2
NEW_TYPE: Final = b'{"new": [1, 2.50, {"type": "result"}], "type": "of_a_later_version", "text": "\\u00e4 \xc3\xa4"}'
"""Spaced, escaped and ordered as the CLI never does it: whoever passes it on by decoding it changes its bytes."""
NEW_SUBTYPE: Final = b'{"type":"system","subtype":"of_a_later_version","state":7}'
_CHUNK: Final = 1 << 16
_held: Final[list[bytes]] = []


def at_start(faults: Directives) -> None:
    """Faults that act before the first line of stdin is read; may not return."""
    _common(faults)
    if faults.exit_code is not None:
        os._exit(faults.exit_code)
    if faults.die_after is not None:
        die()
    if faults.never_ready or faults.hang is not None:
        hang()
    if faults.slow_start:
        time.sleep(faults.slow_start)


def in_turn(faults: Directives, output: Output) -> None:
    """Faults that act when their turn begins, before ``system/init``; may not return."""
    _common(faults)
    output.split = faults.split_writes
    if faults.die_after == 0:
        die()
    if faults.hang == 0:
        hang()


def before_first_delta(faults: Directives, output: Output) -> None:
    """Faults that act when the first delta is due; may not return."""
    if faults.exit_code is not None:
        os._exit(faults.exit_code)
    if faults.garbage_line:
        output.line(b"[SandboxDebug] this line is not JSON")
    if faults.bad_utf8:
        output.line(b'{"type":"system","subtype":"informational","content":"\xff\xfe\xc3(","level":"info"}')
    if faults.huge_line:
        floods.huge_line(faults.huge_line, output)
    if faults.unknown_frame:
        output.line(NEW_TYPE)
        output.line(NEW_SUBTYPE)


def after_delta(faults: Directives, said: int) -> None:
    """Faults that act once ``said`` text deltas are out; may not return."""
    if faults.die_after is not None and said >= faults.die_after:
        die()
    if faults.hang is not None and said >= faults.hang:
        hang()


def die() -> NoReturn:
    """As if killed."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def hang() -> NoReturn:
    """Neither read nor write any more.  Only a signal ends it, or an hour."""
    # Not pause(): a signal that is ignored would not matter, but one with a handler would end it.
    end = time.monotonic() + FOREVER_S
    while (left := end - time.monotonic()) > 0:
        time.sleep(left)
    sys.exit(1)


def _common(faults: Directives) -> None:
    if faults.ignore_term:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if faults.grow:
        _held.append(b"x" * (faults.grow << 20))  # written to: memory that is only asked for is not there
    if faults.grandchild:
        _leave_grandchild(faults.grandchild, detached=faults.detached)
    flood = b"simulated stderr flood\n" * (_CHUNK // 23)
    for start in range(0, faults.stderr_flood, len(flood)):
        os.write(STDERR, flood[: faults.stderr_flood - start])


def _leave_grandchild(seconds: float, *, detached: bool) -> None:
    """A process that holds stdout and stderr open and is nobody's child any more."""
    import subprocess  # noqa: PLC0415 - 6 ms that only a faulty start shall pay

    # The shell leaves at once; what it started is reparented and stays in the process group unless it is detached.
    command = ["/bin/sh", "-c", f"sleep {seconds:g} &"]
    subprocess.run(command, stdin=subprocess.DEVNULL, start_new_session=detached, check=True, timeout=10)
