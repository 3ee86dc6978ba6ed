"""What a broker leaves behind: processes, directories, and words in its log.

Caller: ``bench.chaos.world``, when the last broker of a run has ended.
"""

import contextlib
import os
import signal
from pathlib import Path
from typing import Final

import anyio

from bench.broker_log import bugs
from bench.chaos.checker import CANARY
from bench.chaos.violations import Kind, Violations
from bench.clock import now

LEDGER: Final = "ledger"
"""The simulator's file in the run's directory: the environment of every CLI names it, so that none can hide."""
GONE_WITHIN_S: Final = 10.0
POLL_S: Final = 0.1
EXPECTED: Final = ("store.failed", "pool.breaker_open", "process.over_memory", "connection.no_descriptor")
"""Errors that tell of a machine that has too little, or of CLIs that do not start; not of a bug."""
MOST_LINES: Final = 5


async def judge_leftovers(place: Path, sessions: int, violations: Violations) -> None:
    """No process is left that knows ``place``, and one directory for each session; what is left is killed."""
    deadline = now() + GONE_WITHIN_S
    while (found := processes_of(place)) and now() < deadline:  # noqa: ASYNC110 - /proc has no event
        await anyio.sleep(POLL_S)
    for pid in found:
        violations.add(Kind.LEFTOVER, "broker", f"process {pid}: {_command(pid)}")
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    folders = os.listdir(place / "state" / "sessions")
    if len(folders) > sessions:
        violations.add(Kind.LEFTOVER, "broker", f"{len(folders)} directories of {sessions} sessions")


def judge_log(place: Path, violations: Violations) -> None:
    """Nothing in the log means a bug, or is what a tenant said."""
    text = (place / "broker.log").read_text(errors="replace")
    said = [line for line in text.splitlines() if CANARY.search(line)]
    for line in [*bugs(text, EXPECTED)[:MOST_LINES], *said[:MOST_LINES]]:
        violations.add(Kind.LOGGED, "broker", line[:500])


def processes_of(place: Path) -> list[int]:
    """Processes whose environment names the run's ledger; a zombie has none."""
    sought, found = str(place / LEDGER).encode(), []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                if sought in Path(f"/proc/{name}/environ").read_bytes():
                    found.append(int(name))
    return found


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return "gone"
