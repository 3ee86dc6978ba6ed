"""Running a tool call: Bash and the tools for files for real, everything else canned.

A command runs in the process group of the simulator, so that a parent that kills the group kills it too; an interrupt
kills the command with all its descendants.  Owner and caller: ``simulator.turn``.
"""

import os
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from simulator import files

Listen = Callable[[float | None, Sequence[int]], list[int]]
"""Waits like ``Session.listen``; whatever it raises ends the tool."""

MAX_OUTPUT: Final = 30_000
DEFAULT_TIMEOUT_S: Final = 120.0
DRAIN_S: Final = 0.2
_SILENT: Final = (["cp"], ["mkdir"], ["mv"], ["rm"], ["rmdir"], ["touch"])
_READ: Final = 1 << 16
_running: set[int] = set()
_starting: list[str] = []
"""Commands that may run already and whose number is not known yet: a signal can come in between."""


class ToolResult(NamedTuple):
    """What the model is told, and the ``tool_use_result`` that the user interface would show."""

    content: Any
    is_error: bool
    shown: Any


def run(tool: str, given: dict[str, Any], environment: dict[str, str], listen: Listen) -> ToolResult:
    """Run one allowed tool call to its end."""
    if tool == "Bash":
        return _bash(given, environment, listen)
    if tool in files.TOOLS:
        try:
            answer = files.run(tool, given)
        except files.Refused as error:
            return failed(str(error))
        return ToolResult(answer.content, False, answer.shown)
    text = f"Simulated result of {tool}"
    return ToolResult(text, False, {"type": "text", "text": text})


def failed(text: str) -> ToolResult:
    """A tool call that did not run or that failed."""
    return ToolResult(text, True, f"Error: {text}")


def kill_running() -> None:
    """Kill every command that still runs, with its descendants; for the way out and for signal handlers."""
    for pid in {*_running, *(_children(os.getpid()) if _starting else ())}:
        _kill_tree(pid)


def kill_at_exit(pid: int) -> None:
    """A child that runs on beside the turns goes with the program."""
    _running.add(pid)


def forget(pid: int) -> None:
    """A child has ended and is reaped."""
    _running.discard(pid)


def kill(pid: int) -> None:
    """Kill such a child with all its descendants; the caller reaps it."""
    _kill_tree(pid)
    _running.discard(pid)


def _bash(given: dict[str, Any], environment: dict[str, str], listen: Listen) -> ToolResult:
    import subprocess  # noqa: PLC0415 - 6 ms that a process without tools shall not pay

    limit = given.get("timeout")
    seconds = limit / 1000 if isinstance(limit, (int, float)) and limit > 0 else DEFAULT_TIMEOUT_S
    _starting.append("Bash")
    with subprocess.Popen(
        ["/bin/sh" if not os.path.exists("/bin/bash") else "/bin/bash", "-c", str(given.get("command", ""))],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment,
    ) as child:  # fmt: skip
        _running.add(child.pid)
        _starting.clear()
        try:
            assert child.stdout is not None
            assert child.stderr is not None
            outputs = {child.stdout.fileno(): bytearray(), child.stderr.fileno(): bytearray()}
            ended = _watch(child.pid, outputs, time.monotonic() + seconds, listen)
        finally:
            if child.poll() is None:
                _kill_tree(child.pid)
            child.wait(10)
            _running.discard(child.pid)
    out, err = (bytes(data[:MAX_OUTPUT]).decode(errors="replace").rstrip("\n") for data in outputs.values())
    if not ended:
        return failed(f"Command timed out after {seconds:g}s")
    if child.returncode:
        return failed("\n".join(part for part in (f"Exit code {child.returncode}", out, err) if part))
    is_silent = str(given.get("command", "")).split()[:1] in _SILENT
    shown = {"stdout": out, "stderr": err, "interrupted": False, "isImage": False, "noOutputExpected": is_silent}
    text = "\n".join(part for part in (out, err) if part)
    return ToolResult(text or "(Bash completed with no output)", False, shown)


def _watch(pid: int, outputs: dict[int, bytearray], deadline: float, listen: Listen) -> bool:
    """Collect output until the command ends (a grandchild may hold the pipes longer); False at the deadline."""
    death = os.pidfd_open(pid)
    try:
        pipes = set(outputs)
        for pipe in pipes:
            os.set_blocking(pipe, False)
        while time.monotonic() < deadline:
            ready = listen(deadline - time.monotonic(), (death, *pipes))
            for pipe in pipes & set(ready):
                if not _drain(pipe, outputs[pipe]):
                    pipes.discard(pipe)
            if death in ready:
                for pipe in pipes:
                    _drain(pipe, outputs[pipe])
                return True
        return False
    finally:
        os.close(death)


def _drain(pipe: int, kept: bytearray) -> bool:
    """Read what is there now, at most for ``DRAIN_S``; False at the end of the pipe."""
    end = time.monotonic() + DRAIN_S
    while time.monotonic() < end:
        try:
            chunk = os.read(pipe, _READ)
        except BlockingIOError:
            return True
        if not chunk:
            return False
        kept += chunk[: MAX_OUTPUT - len(kept)] if len(kept) < MAX_OUTPUT else b""
    return True


def _kill_tree(pid: int) -> None:
    """Kill ``pid`` and its descendants, parents first, so that none of them can start another one."""
    children = _children(pid)
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    for child in children:
        _kill_tree(child)


def _children(pid: int) -> list[int]:
    found: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
                found += map(int, file.read().split())
    except OSError:
        pass  # it is gone, or the system does not tell: then only the process itself is killed
    return found
