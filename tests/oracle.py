"""The house oracle: after every test nothing may be left behind.

Job: a pytest plugin that takes a baseline before each test and, once its fixtures are torn down, looks for children,
zombies, strays, file descriptors, threads, tasks and temporary files that were not there before, for complaints of
asyncio and of the garbage collector, and for tracebacks and canary secrets in what was logged or printed.  It polls up
to ``Oracle.deadline_s`` before it complains, says what leaked, kills leaked processes and deletes leaked files, so that
one test's mistake is not the next one's.

Callers: pytest (``tests/conftest.py`` loads it).  Tests take the ``oracle`` fixture to plant canaries and to allow what
is meant to stay.

A fixture of a wider scope that a test names is part of the baseline.  One that is made in mid-test must call ``allow``.
"""

import asyncio
import contextlib
import gc
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from tests.processes import Process, is_tagged, process_table, read_process, tag_descendants, tree
from tests.waiting import POLL_S

TRACEBACK: Final = "Traceback (most recent call last)"
MOST_SHOWN: Final = 2000


def open_fds() -> dict[int, str]:
    """Open file descriptors of this process and what they lead to."""
    targets = {}
    for name in os.listdir("/proc/self/fd"):
        # The descriptor of the listing itself is gone by now.
        with contextlib.suppress(FileNotFoundError):
            targets[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return targets


@dataclass(frozen=True)
class Baseline:
    """What was there before the test."""

    processes: frozenset[Process]
    fds: dict[int, str]
    threads: frozenset[threading.Thread]
    files: frozenset[str]


class Complaints(logging.Handler):
    """Keeps what asyncio reports to nobody: exceptions never retrieved, tasks destroyed, callbacks that failed."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self._lines: list[str] = []

    def take(self) -> list[str]:
        """What was heard since the last call."""
        lines, self._lines = self._lines, []
        return lines

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        text = record.getMessage().replace("\n", " ")
        self._lines.append(text + (f" {error!r}" if error is not None else ""))


@dataclass
class Oracle:
    """One per test process.  ``canaries``: secrets that must never be logged or printed, kept to the end of the run."""

    canaries: set[str] = field(default_factory=set)
    deadline_s: float = 2.0
    folder: Path | None = None
    """Where temporary files go: of this test process and of what it starts, and of no other."""
    may_log_tracebacks: bool = False
    """For one test, whose point is a failure that is logged."""
    _pids: set[int] = field(default_factory=set)
    _fds: set[int] = field(default_factory=set)
    _threads: set[threading.Thread] = field(default_factory=set)
    _tag: int | None = None
    _born: int = 0

    def allow(self, *, pid: int | None = None, fd: int | None = None, thread: threading.Thread | None = None) -> None:
        """Something that outlives the test on purpose; a pid stands for its whole tree."""
        if pid is not None:
            self._pids.add(pid)
        if fd is not None:
            self._fds.add(fd)
        if thread is not None:
            self._threads.add(thread)

    def mark_descendants(self) -> None:
        """From now on whatever descends from this process is found, even as an orphan."""
        self._tag = tag_descendants()
        own = read_process(os.getpid())
        self._born = own.started if own else 0

    def baseline(self) -> Baseline:
        """Taken before a test."""
        return Baseline(
            frozenset(self._processes()), open_fds(), frozenset(threading.enumerate()), frozenset(self._files())
        )

    def leaks(self, before: Baseline) -> list[str]:
        """What is there now and was neither there before nor allowed, one line each."""
        lines = [f"{_kind(row)} {row}" for row in self.leaked_processes(before)]
        lines += [
            f"fd {number} -> {target}"
            for number, target in open_fds().items()
            if before.fds.get(number) != target and number not in self._fds
        ]
        threads = set(threading.enumerate()) - before.threads - self._threads
        lines += [f"thread {thread.name} ({thread!r})" for thread in threads]
        return lines + [f"temporary {self.folder}/{name}" for name in sorted(self._files() - before.files)]

    def leaked_processes(self, before: Baseline) -> list[Process]:
        """Descendants and strays, alive or zombie."""
        known = {(row.pid, row.started) for row in before.processes}
        return [row for row in self._processes() if (row.pid, row.started) not in known]

    def settle(self, before: Baseline) -> list[str]:
        """``leaks``, once they are none or the deadline has passed."""
        deadline = time.monotonic() + self.deadline_s
        while (found := self.leaks(before)) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        return found

    def clear_leaked(self, before: Baseline) -> None:
        """End what a test left running, reap what is ours, and delete its temporary files."""
        for row in self.leaked_processes(before):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(row.pid, signal.SIGKILL)
            if row.parent == os.getpid():
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(row.pid, 0)
        for name in self._files() - before.files:
            assert self.folder is not None
            path = self.folder / name
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def canary_lines(self, text: str) -> list[str]:
        """Every line of ``text`` that holds a canary."""
        if not any(canary in text for canary in self.canaries):
            return []
        return [line for line in text.split("\n") if any(canary in line for canary in self.canaries)]

    def _files(self) -> set[str]:
        return set(os.listdir(self.folder)) if self.folder is not None else set()

    def _processes(self) -> list[Process]:
        table = process_table()
        below = tree({os.getpid()}, table)
        ignored = tree(self._pids, table) | {os.getpid()}
        return [row for row in table.values() if row.pid not in ignored and (row.pid in below or self._is_stray(row))]

    def _is_stray(self, row: Process) -> bool:
        # A dead stray waits for init, not for us. The age spares a look at every other process of the machine.
        return (
            self._tag is not None and row.state != "Z" and row.started >= self._born and is_tagged(row.pid, self._tag)
        )


def _kind(row: Process) -> str:
    return "zombie" if row.state == "Z" else "child" if row.parent == os.getpid() else "descendant"


def pending_tasks() -> list[asyncio.Task[Any]]:
    """Tasks of the running loop that have not ended, without the one that asks."""
    return [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]


def collect_garbage() -> list[str]:
    """Run the collector; returns what finalizers could not raise ("unclosed ...", "... was never awaited")."""
    lines: list[str] = []
    previous = sys.unraisablehook
    # str() at once: keeping the objects would resurrect them.
    sys.unraisablehook = lambda unraisable: lines.append(f"{unraisable.exc_value!r} in {unraisable.object!r}")
    try:
        gc.collect()
    finally:
        sys.unraisablehook = previous
    return lines


# --- the plugin ---

_oracle: Final = Oracle()
_before: Final = pytest.StashKey[Baseline]()
_tasks: Final = pytest.StashKey[list[str]]()
_complaints: Final = Complaints()


@pytest.fixture(scope="session")
def oracle() -> Oracle:
    """The house oracle of this test process."""
    return _oracle


@pytest.fixture(autouse=True)
def _house_oracle(request: pytest.FixtureRequest) -> None:
    request.node.stash[_before] = _oracle.baseline()
    if request.node.get_closest_marker("asyncio") is not None:
        request.getfixturevalue("_house_tasks")


@pytest.fixture
async def _house_tasks(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    """Made before the test's other asynchronous fixtures, so torn down after them, while the loop still runs."""
    yield
    deadline = time.monotonic() + _oracle.deadline_s
    while pending_tasks() and time.monotonic() < deadline:
        await asyncio.sleep(POLL_S)
    request.node.stash[_tasks] = [f"task {task!r}" for task in pending_tasks()]


def pytest_configure(config: pytest.Config) -> None:
    """Tag the process, give it a directory for temporary files, and listen to asyncio."""
    _oracle.mark_descendants()
    # Where pytest's own tmp_path lies stays as it is: the paths of Unix sockets have little room.
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
    _oracle.folder = Path(tempfile.mkdtemp(prefix="oracle-"))
    os.environ["TMPDIR"] = tempfile.tempdir = str(_oracle.folder)
    logging.getLogger("asyncio").addHandler(_complaints)


def pytest_unconfigure() -> None:
    """The directory goes with the process; what was made there outside of any test goes with it."""
    if _oracle.folder is not None:
        shutil.rmtree(_oracle.folder, ignore_errors=True)


def pytest_collection_finish() -> None:
    """What the imports made stays: out of every later collection, which then takes about a millisecond."""
    gc.collect()
    gc.freeze()


# trylast makes it the innermost wrapper: the capture of stdout and stderr is still in place, as at the baseline.
@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, object, object]:
    """After all fixtures, the loop's among them."""
    try:
        result = yield
    finally:
        heard = _complaints.take()
    before = item.stash.get(_before, None)
    if before is None:  # skipped, or a fixture before ours failed
        return result
    garbage = collect_garbage()
    found = item.stash.get(_tasks, []) + _oracle.settle(before) + garbage + heard + _complaints.take()
    if found:
        _oracle.clear_leaked(before)
        pytest.fail("the test left behind:\n" + "\n".join(f"  {line}" for line in found), pytrace=False)
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """At the last report of a test, look for canaries and tracebacks in everything captured since its first."""
    report = yield
    if report.when == "teardown":
        lines = [*_canaries_in(report), *_tracebacks_in(report)]
        _oracle.may_log_tracebacks = False
        if lines:
            report.outcome = "failed"
            report.longrepr = "\n".join([*([str(report.longrepr)] if report.longrepr else []), *lines])
    return report


def _canaries_in(report: pytest.TestReport) -> Iterator[str]:
    for title, content in report.sections:
        for line in _oracle.canary_lines(content):
            yield f"a canary in {title!r}: {line}"


def _tracebacks_in(report: pytest.TestReport) -> Iterator[str]:
    for title, content in report.sections:
        if TRACEBACK in content and not _oracle.may_log_tracebacks:
            yield f"a traceback in {title!r}: {content[content.index(TRACEBACK) :][:MOST_SHOWN]}"
