"""The house oracle finds what it must: one leak of each kind is planted in a pytest run of its own."""

import os
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from tests.oracle import Oracle, collect_garbage
from tests.processes import process_table, read_process, tree
from tests.waiting import eventually, eventually_sync

ROOT = Path(__file__).resolve().parent.parent

LEAKY = r"""
import asyncio, logging, os, socket, subprocess, sys, tempfile, threading
import pytest

kept = []
never = threading.Event()

def test_child():
    kept.append(subprocess.Popen(["sleep", "61"]))

def test_zombie():
    kept.append(subprocess.Popen(["true"]))

def test_orphan():
    # Its parent is gone, its environment is empty, it is in a session of its own.
    subprocess.run(["/bin/sh", "-c", "setsid /bin/sleep 62 >/dev/null 2>&1 &"], env={}, check=True)

def test_fd():
    kept.extend(os.pipe())

def test_thread():
    kept.append(threading.Thread(target=never.wait, name="lingering", daemon=True))
    kept[-1].start()

async def test_task():
    kept.append(asyncio.create_task(asyncio.sleep(63), name="ownerless"))

async def test_never_retrieved():
    async def fail():
        raise ValueError("lost")
    task = asyncio.create_task(fail())
    await asyncio.wait([task])

async def test_never_awaited():
    cycle = [asyncio.sleep(64)]
    cycle.append(cycle)

def test_unclosed():
    cycle = [socket.socket()]
    cycle.append(cycle)

def test_socket():
    kept.append(socket.create_server(("127.0.0.1", 0)))

def test_directory():
    kept.append(tempfile.mkdtemp(prefix="left-"))

def test_file():
    kept.append(tempfile.mkstemp(prefix="left-file-")[1])

def test_traceback_logged():
    try:
        raise ValueError("a bug")
    except ValueError:
        logging.getLogger("product").exception("failed")

def test_traceback_printed_by_a_child():
    subprocess.run([sys.executable, "-c", "1 / 0"])

def test_traceback_allowed(oracle):
    oracle.may_log_tracebacks = True
    logging.getLogger("product").error("failed", exc_info=ValueError("meant"))
    try:
        raise ValueError("meant")
    except ValueError:
        logging.getLogger("product").exception("failed")

def test_canary_logged(oracle):
    oracle.canaries.add("canary-logged-1")
    logging.getLogger("product").warning("token=canary-logged-1")

def test_canary_printed_by_a_child(oracle):
    oracle.canaries.add("canary-printed-2")
    subprocess.run(["echo", "canary-printed-2"], check=True)

@pytest.fixture
def canary_in_teardown(oracle):
    oracle.canaries.add("canary-teardown-3")
    yield
    print("canary-teardown-3")

def test_canary_in_teardown(canary_in_teardown):
    pass

def test_allowed(oracle):
    child = subprocess.Popen(["sh", "-c", "sleep 65 & wait"], start_new_session=True)
    thread = threading.Thread(target=never.wait, daemon=True)
    thread.start()
    ends = os.pipe()
    oracle.allow(pid=child.pid, thread=thread)
    for end in ends:
        oracle.allow(fd=end)
    kept.append(child)

@pytest.fixture(scope="module")
def wide():
    child = subprocess.Popen(["sleep", "66"])
    yield child
    child.kill()
    child.wait()

def test_a_wider_fixture(wide):
    pass

async def test_clean():
    process = await asyncio.create_subprocess_exec("true")
    await process.wait()
    async with asyncio.TaskGroup() as group:
        group.create_task(asyncio.sleep(0))

def test_stop_the_allowed_child(oracle):
    child = next(p for p in kept if isinstance(p, subprocess.Popen) and "sleep 65 & wait" in p.args)
    os.killpg(child.pid, 9)
    child.wait()
"""

INI = """
[pytest]
asyncio_mode = auto
asyncio_default_fixture_loop_scope = function
filterwarnings = error
"""

# test -> the words its report must hold, in one line.
FINDINGS = {
    "test_child": "  child *: sleep 61",
    "test_zombie": "  zombie *",
    "test_orphan": "  descendant *: /bin/sleep 62",
    "test_fd": "  fd * -> pipe:*",
    "test_socket": "  fd * -> socket:*",
    "test_directory": "  temporary */left-*",
    "test_file": "  temporary */left-file-*",
    "test_traceback_logged": "a traceback in 'Captured log call': Traceback (most recent call last)*",
    "test_traceback_printed_by_a_child": "a traceback in 'Captured stderr call': Traceback (most recent call last)*",
    "test_thread": "  thread lingering *",
    "test_task": "  task *ownerless*",
    "test_never_retrieved": "  Task exception was never retrieved *ValueError('lost')",
    "test_never_awaited": "  *coroutine 'sleep' was never awaited*",
    "test_unclosed": "  *unclosed <socket.socket*",
    "test_canary_logged": "a canary in 'Captured log call': *token=canary-logged-1",
    "test_canary_printed_by_a_child": "a canary in 'Captured stdout call': canary-printed-2",
    "test_canary_in_teardown": "a canary in 'Captured stdout teardown': canary-teardown-3",
}
CLEAN = {"test_allowed", "test_a_wider_fixture", "test_clean", "test_traceback_allowed", "test_stop_the_allowed_child"}


def test_one_leak_of_each_kind_is_found_and_named(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, oracle: Oracle
) -> None:
    """Each planted leak is an error of its own test that names it; what is clean or allowed passes."""
    oracle.may_log_tracebacks = True
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pytester.makeconftest("from tests import oracle\noracle._oracle.deadline_s = 0.3\n")
    pytester.makeini(INI)
    pytester.makepyfile(LEAKY)
    result = pytester.runpytest_subprocess("-p", "tests.oracle", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=len(FINDINGS) + len(CLEAN), errors=len(FINDINGS))
    for test, finding in FINDINGS.items():
        result.stdout.fnmatch_lines([f"*ERROR at teardown of {test} *", finding])
    for seconds in ("61", "62"):
        assert not [row for row in process_table().values() if str(row).endswith(f"sleep {seconds}")]


def test_a_process_is_known_by_pid_and_start_time(oracle: Oracle) -> None:
    """A child is found from the moment it starts to the moment it is reaped, alive and as a zombie."""
    before = oracle.baseline()
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    assert child.stdin is not None
    assert [row.pid for row in oracle.leaked_processes(before)] == [child.pid]
    child.stdin.close()
    assert eventually_sync(lambda: (row := read_process(child.pid)) is not None and row.state == "Z")
    assert any(line.startswith(f"zombie {child.pid} ") for line in oracle.leaks(before))
    assert child.wait() == 0
    assert oracle.leaked_processes(before) == []
    assert read_process(child.pid) is None


def test_leaked_processes_are_killed_and_reaped(oracle: Oracle) -> None:
    """What a test left running does not burden the next one."""
    before = oracle.baseline()
    child = subprocess.Popen(["sleep", "67"])
    oracle.clear_leaked(before)
    assert read_process(child.pid) is None
    assert child.wait() in (0, -signal.SIGKILL)  # already reaped: Popen cannot know how it ended


def test_a_tree_holds_grandchildren() -> None:
    """``tree`` follows parents to any depth and never leaves the given roots."""
    with subprocess.Popen(["sh", "-c", "sleep 68 & wait"], start_new_session=True) as child:
        family = eventually_sync(lambda: found if len(found := tree({child.pid}, process_table())) == 2 else None)
        assert child.pid in family
        assert os.getpid() not in family
        os.killpg(child.pid, signal.SIGKILL)


def test_the_collector_reports_what_finalizers_cannot_raise() -> None:
    """An exception inside ``__del__`` is returned as a line, and the hook of before is back afterwards."""

    class Faulty:
        def __init__(self) -> None:
            self.cycle = self

        def __del__(self) -> None:
            raise RuntimeError("from a finalizer")

    Faulty()
    assert any("from a finalizer" in line for line in collect_garbage())
    assert collect_garbage() == []


async def test_eventually_gives_up_at_its_deadline() -> None:
    """A condition that stays false is an assertion that names the deadline; a true one returns its value."""
    assert await eventually(lambda: "value") == "value"
    assert eventually_sync(lambda: "value") == "value"
    with pytest.raises(AssertionError, match=r"not true within 0\.02 s"):
        await eventually(lambda: False, within_s=0.02)
    with pytest.raises(AssertionError, match=r"not true within 0\.02 s"):
        eventually_sync(lambda: False, within_s=0.02)


def test_a_thread_that_ends_in_time_is_no_leak(oracle: Oracle) -> None:
    """The oracle waits for what is on its way out before it complains."""
    before = oracle.baseline()
    leave = threading.Event()
    threading.Thread(target=leave.wait).start()
    threading.Timer(0.05, leave.set).start()
    assert oracle.leaks(before)
    assert oracle.settle(before) == []
