"""Which processes belong to a tree, and what it holds: on drawn tables, and on real children."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from hypothesis import given
from hypothesis import strategies as st

from broker.processes.orphans import MARKER
from broker.processes.resident import Row, above, look, marker_of, trees
from tests.waiting import eventually

BROKER = 1
MB = 2**20
HOLD = "import sys; held = b'x' * ({} << 20); {}; print('ready', flush=True); sys.stdin.read()"
FORK = "import os; os.fork()"
"""Parent and child share what is held."""
CHILD = "import subprocess; subprocess.Popen([sys.executable, '-c', 'held = bytes(1)*({} << 20); input()'])"


@st.composite
def tables(draw: st.DrawFn) -> tuple[dict[int, Row], dict[int, str], dict[int, str], dict[int, int]]:
    """A table with roots, their markers, the marker that each process shows, and whose each process really is."""
    roots = {pid: f"m{pid}" for pid in range(10, 10 + draw(st.integers(1, 4)))}
    table = {BROKER: Row(0, BROKER, 1)} | {pid: Row(BROKER, pid, 1) for pid in roots}
    owners = {pid: pid for pid in roots}
    shown = dict(roots)
    for pid in range(100, 100 + draw(st.integers(0, 20))):
        parent = draw(st.sampled_from([*owners, 0]))
        if parent == 0:
            table[pid] = Row(0, pid, 1)  # somebody else's
            continue
        owner = owners[pid] = owners[parent]
        leaves_group = draw(st.booleans())
        is_orphan = draw(st.booleans())
        shown[pid] = roots[owner]
        table[pid] = Row(BROKER if is_orphan else parent, pid if leaves_group else owner, 1)
    return table, roots, shown, owners


@given(tables())
def test_each_process_counts_for_its_root(
    drawn: tuple[dict[int, Row], dict[int, str], dict[int, str], dict[int, int]],
) -> None:
    """Descendants and what was orphaned, in the group or out of it, for their own root; nothing else for any."""
    table, roots, shown, owners = drawn
    found = trees(table, roots, BROKER, lambda pid: shown.get(pid, ""))
    assert found == {root: {pid for pid, owner in owners.items() if owner == root} for root in roots}


def test_a_root_that_is_gone_has_no_tree() -> None:
    """Its orphans count for nobody any more: the end of the process ends them."""
    table = {BROKER: Row(0, BROKER, 1), 11: Row(BROKER, 10, 1)}
    assert trees(table, {10: "m"}, BROKER, lambda pid: "m") == {}


@contextmanager
def holding(megabytes: int, then: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A child that holds so much, and has done ``then``."""
    code = HOLD.format(megabytes, then)
    environment = {**os.environ, MARKER: "mine"}
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as popen:
        try:
            assert popen.stdout is not None
            assert popen.stdout.readline().startswith(b"ready")  # a fork says it too
            yield popen
        finally:
            popen.kill()


async def test_the_whole_tree_counts() -> None:
    """A child's memory is its parent's, too: above the limit together, and not alone."""
    with holding(40, CHILD.format(40)) as popen:
        await eventually(lambda: above({popen.pid: "mine"}, 80 * MB), 10)
        assert above({popen.pid: "mine"}, 150 * MB) == {}
        assert marker_of(popen.pid) == "mine"


def test_what_is_shared_counts_once() -> None:
    """A process of 60 MiB that forks shows twice that much in the table, and holds no more than before."""
    with holding(60, FORK) as popen:
        table = look()
        tree = trees(table, {popen.pid: "mine"}, os.getpid(), marker_of)[popen.pid]
        assert len(tree) == 2
        assert sum(table[pid].bytes for pid in tree) > 120 * MB
        assert above({popen.pid: "mine"}, 100 * MB) == {}
        assert 60 * MB < above({popen.pid: "mine"}, 60 * MB)[popen.pid] < 100 * MB
