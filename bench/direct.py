"""The CLI without a broker: its cold start, and what a warm one takes for its own bind and its own first turn.

Callers: the series on the real CLI.  The broker can be no faster than the warm figure, so it stands beside it.
Everything blocks; call it from a thread.
"""

import json
import os
import selectors
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from bench.clock import now
from broker.config.launch_profile import LaunchProfile
from broker.processes.launcher import BASELINE, EVENTS
from broker.processes.program import QUIET, Cli

DEADLINE_S: Final = 60.0
STOP_DEADLINE_S: Final = 10.0
SETTLE_S: Final = 1.0
"""Between a CLI's first answer and its bind: a spare of a pool has sat for longer."""
DELTA: Final = b'"content_block_delta"'
ROOT: Final = Path(__file__).resolve().parent.parent


class DirectFailed(Exception):
    """The CLI ended, or said nothing, before what was waited for."""


def cold(cli: Cli, options: Mapping[str, Any], text: str, env: Mapping[str, str]) -> float:
    """Seconds from before the spawn to the first delta, everything written at once.  Raises ``DirectFailed``."""
    started_at = now()
    with started(cli, options["model"], env) as process:
        process.write(_bind(options) + _user(text))
        return process.wait(DELTA) - started_at


def warm(cli: Cli, options: Mapping[str, Any], text: str, env: Mapping[str, str]) -> tuple[float, float]:
    """A CLI that was started and left alone: seconds from the bind's first byte to its last answer, and to the first
    delta of a message that is written after that answer, as the broker does.  Raises ``DirectFailed``."""
    with started(cli, options["model"], env) as process:
        process.wait_ready()
        time.sleep(SETTLE_S)
        began_at = now()
        bound_at = process.bind(options)
        process.say(text)
        return bound_at - began_at, process.wait(DELTA) - began_at


class Process:
    """A CLI on pipes, read with deadlines.  Made by ``started``."""

    def __init__(self, popen: "subprocess.Popen[bytes]") -> None:
        self.pid = popen.pid
        self._popen = popen
        self._seen = b""
        self._read_at = 0.0

    def write(self, data: bytes) -> None:
        """All of ``data``; it is small beside the pipe."""
        assert self._popen.stdin is not None
        self._popen.stdin.write(data)

    def wait_ready(self) -> None:
        """Until it answers, as a spare of a pool has.  Raises ``DirectFailed``."""
        self.write(request_line("ready", {"subtype": "get_binary_version"}))
        self.wait(b'"ready"')

    def bind(self, options: Mapping[str, Any]) -> float:
        """Bind it as the broker would; the moment of its last answer.  Raises ``DirectFailed``."""
        self.write(_bind(options))
        return max(self.wait(b'"bind-1"'), self.wait(b'"bind-2"'))

    def say(self, text: str) -> None:
        """Write a user message."""
        self.write(_user(text))

    def wait(self, mark: bytes) -> float:
        """The moment of the read that brought ``mark``.  Raises ``DirectFailed``."""
        assert self._popen.stdout is not None
        fd = self._popen.stdout.fileno()
        deadline = now() + DEADLINE_S
        with selectors.DefaultSelector() as selector:
            selector.register(fd, selectors.EVENT_READ)
            while mark not in self._seen:
                if not selector.select(max(0.0, deadline - now())):
                    raise DirectFailed(f"no {mark.decode()} within {DEADLINE_S:g} s")
                data = os.read(fd, 65536)
                self._read_at = now()
                if not data:
                    raise DirectFailed(f"the CLI ended before {mark.decode()}")
                self._seen += data
        return self._read_at


@contextmanager
def started(cli: Cli, model: str, env: Mapping[str, str]) -> Iterator[Process]:
    """A CLI that is on its way up; it is ended with the block."""
    with TemporaryDirectory(prefix="bench-direct-", ignore_cleanup_errors=True) as folder:
        home = Path(folder)
        argv = [*cli.command, *BASELINE, *LaunchProfile(model).flags(""), f"--session-id={uuid.uuid4()}"]
        popen = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=home,
            env=environment(home, cli) | dict(env), start_new_session=True, bufsize=0,
        )  # fmt: skip
        try:
            yield Process(popen)
        finally:
            _stop(popen)


def environment(home: Path, cli: Cli) -> dict[str, str]:
    """The environment of a CLI that is started without the broker; nothing of ours is inherited but PATH."""
    simulated = {"PYTHONPATH": str(ROOT), "CLAUDE_CODE_OAUTH_TOKEN": "simulated"} if cli.simulated else {}
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "LANG": "C.UTF-8",
        "HOME": str(home),
        "CLAUDE_CONFIG_DIR": str(home / ".claude"),
        "TMPDIR": str(home),
        "XDG_RUNTIME_DIR": str(home),
        **QUIET,
        **EVENTS,
        **simulated,
    }


def request_line(request_id: str, request: Mapping[str, Any]) -> bytes:
    """A control request as one line for stdin."""
    return json.dumps({"type": "control_request", "request_id": request_id, "request": request}).encode() + b"\n"


def _bind(options: Mapping[str, Any]) -> bytes:
    """The lines that the broker would write for these options."""
    token = options["credentials"]["oauth_token"]
    credential = {"type": "update_environment_variables", "variables": {"CLAUDE_CODE_OAUTH_TOKEN": token}}
    permissions = {"allow": options["allowed_tools"], "deny": options["disallowed_tools"]}
    return (
        json.dumps(credential).encode()
        + b"\n"
        + request_line("bind-1", {"subtype": "apply_flag_settings", "settings": {"permissions": permissions}})
        + request_line("bind-2", {"subtype": "initialize", "systemPrompt": [options["system_prompt"]]})
    )


def _user(text: str) -> bytes:
    message = {"role": "user", "content": text}
    line = {"type": "user", "message": message, "parent_tool_use_id": None, "uuid": str(uuid.uuid4())}
    return json.dumps(line).encode() + b"\n"


def _stop(popen: "subprocess.Popen[bytes]") -> None:
    try:
        os.killpg(popen.pid, signal.SIGTERM)
        popen.wait(STOP_DEADLINE_S)
    except subprocess.TimeoutExpired:
        os.killpg(popen.pid, signal.SIGKILL)
        popen.wait()
    except ProcessLookupError:  # it had ended by itself
        popen.wait()
    for pipe in (popen.stdin, popen.stdout):
        if pipe is not None:
            pipe.close()
