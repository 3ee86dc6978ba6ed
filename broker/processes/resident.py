"""How much memory the tree of a process holds: the CLI and everything that it has started.

One pass over /proc for all trees at once.  Callers: ``broker.processes.memory_watch``, in a thread;
``broker.processes.process`` at a start.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from broker.processes.orphans import MARKER

PAGE_BYTES = os.sysconf("SC_PAGESIZE")
OOM_SCORE_ADJ = "500"
"""As if it held half of the machine's memory more."""


class Row(NamedTuple):
    """A process in the table."""

    parent: int
    group: int
    bytes: int


def offer_first(pid: int) -> None:
    """Where the whole machine is out of memory, let the kernel end this process, or one of its tree, before the broker.

    Inherited by what it starts (proc_pid_oom_score_adj(5)).  About 20 us.
    """
    with contextlib.suppress(OSError):  # dead already
        Path(f"/proc/{pid}/oom_score_adj").write_text(OOM_SCORE_ADJ)


def look() -> dict[int, Row]:
    """Every process that can be read, by pid.

    Blocking.  Measured on 2 shared cores with 32 CLIs of three processes each, 186 processes in all (kernel threads
    too): 2.4 ms at the median, 9 ms at the worst, 13 us a process; once a second a quarter of a percent of a core.
    """
    table = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb", buffering=0) as stat:  # pathlib would cost three times as much
                text = stat.read()
        except OSError:  # gone meanwhile
            continue
        fields = text.rpartition(b")")[2].split(None, 22)
        table[int(name)] = Row(int(fields[1]), int(fields[2]), int(fields[21]) * PAGE_BYTES)
    return table


def trees(
    table: Mapping[int, Row], roots: Mapping[int, str], adopter: int, marker_of: Callable[[int], str]
) -> dict[int, set[int]]:
    """The pids of each root's tree.  ``roots``: a process and its marker.

    Descendants belong to it, and what was orphaned: children of ``adopter`` that are still in the root's process group,
    or that carry its marker.  Pure but for ``marker_of``, which is asked about those alone.
    """
    children: dict[int, list[int]] = {}
    for pid, row in table.items():
        children.setdefault(row.parent, []).append(pid)
    by_marker = {marker: root for root, marker in roots.items()}
    heads: dict[int, list[int]] = {root: [root] for root in roots if root in table}
    for pid in children.get(adopter, ()):
        group = table[pid].group
        owner = group if group in heads else None if pid in roots else by_marker.get(marker_of(pid))
        if owner in heads and pid not in roots:
            heads[owner].append(pid)
    return {root: _below(found, children) for root, found in heads.items()}


def _below(pids: list[int], children: Mapping[int, list[int]]) -> set[int]:
    found: set[int] = set()
    pending = list(pids)
    while pending:
        pid = pending.pop()
        if pid not in found:
            found.add(pid)
            pending += children.get(pid, ())
    return found


def above(roots: Mapping[int, str], limit: int) -> dict[int, int]:
    """Of ``roots`` those whose tree holds more than ``limit`` bytes, and how many.  Blocking.

    What several processes share is counted once: a large program that forks has twice its size in the table for a
    moment, and holds no more.  Only where the table says too much that is looked at, which takes milliseconds.
    """
    table = look()
    found = {}
    for root, pids in trees(table, roots, os.getpid(), marker_of).items():
        if sum(table[pid].bytes for pid in pids) > limit and (held := _held(pids, table)) > limit:
            found[root] = held
    return found


def marker_of(pid: int) -> str:
    """The marker of the process that ``pid`` descends from; empty when it shows none."""
    try:
        entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return ""
    prefix = f"{MARKER}=".encode()
    return next((entry[len(prefix) :].decode(errors="replace") for entry in entries if entry.startswith(prefix)), "")


def _held(pids: Iterable[int], table: Mapping[int, Row]) -> int:
    return sum(_proportional(pid, table[pid].bytes) for pid in pids)


def _proportional(pid: int, resident: int) -> int:
    """The proportional set size (proc_pid_smaps(5)); ``resident`` where it may not be read, 0 when it is gone."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    except OSError:
        return resident
    return next((int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith(b"Pss:")), resident)
