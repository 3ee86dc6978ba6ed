"""What /proc says about processes, and a tag that finds our own even when they are nobody's descendants any more.

Callers: ``tests.oracle`` after every test; tests that ask whether a process tree is gone.
"""

import os
import resource
from pathlib import Path
from typing import Final, NamedTuple

# A process limit that nothing here uses is inherited by every descendant: through exec, a cleaned environment, a new
# session and the death of its parent.  Its value, made from our pid, finds strays.
_TAG_LIMIT: Final = resource.RLIMIT_MSGQUEUE
_TAG_ROW: Final = "Max msgqueue size"


class Process(NamedTuple):
    """One row of /proc; pid and start time (clock ticks since boot) together never repeat."""

    pid: int
    started: int
    parent: int
    state: str

    def __str__(self) -> str:
        try:
            command = Path(f"/proc/{self.pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            command = ""
        return f"{self.pid} (parent {self.parent}): {command.strip() or 'no command line'}"


def process_table() -> dict[int, Process]:
    """Every process that can be read, by pid."""
    table = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (row := read_process(int(name))) is not None:
            table[row.pid] = row
    return table


def read_process(pid: int) -> Process | None:
    """The row of one process, None if it is gone."""
    try:
        # Read for every process of the machine, twice per test: pathlib would cost three times as much.
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as stat:
            text = stat.read()
    except OSError:
        return None
    # The name may hold spaces and parentheses: what counts comes after the last one.
    state, parent, *fields = text.rpartition(b")")[2].split()
    return Process(pid=pid, started=int(fields[17]), parent=int(parent), state=state.decode())


def tree(roots: set[int], table: dict[int, Process]) -> set[int]:
    """``roots`` and all their descendants."""
    children: dict[int, list[int]] = {}
    for row in table.values():
        children.setdefault(row.parent, []).append(row.pid)
    found: set[int] = set()
    pending = list(roots)
    while pending:
        pid = pending.pop()
        if pid not in found:
            found.add(pid)
            pending += children.get(pid, [])
    return found


def tag_descendants() -> int | None:
    """Mark this process and all it will start; returns the tag, None where the system's limit leaves no room for it."""
    tag = 100_000 + os.getpid() % 100_000
    hard = resource.getrlimit(_TAG_LIMIT)[1]
    if hard != resource.RLIM_INFINITY and hard < tag:
        return None
    resource.setrlimit(_TAG_LIMIT, (tag, hard))
    return tag


def is_tagged(pid: int, tag: int) -> bool:
    """Whether the process inherited ``tag``; False if it is gone."""
    try:
        limits = Path(f"/proc/{pid}/limits").read_text()
    except OSError:
        return False
    return any(line.startswith(_TAG_ROW) and line.split()[3] == str(tag) for line in limits.splitlines())


def still_there(processes: list[Process]) -> list[Process]:
    """Those of ``processes`` that live on, or lie about as zombies; as they are now."""
    rows = ((row, read_process(row.pid)) for row in processes)
    return [now for row, now in rows if now is not None and now.started == row.started]
