"""One CLI process, real or simulated, and everything it said: written to, waited for, recorded.

Blocking and with one reader thread per stream, so that what is measured is the CLI and not an event loop.
Owner: a situation, through ``Stage.start``; ``Stage.close`` ends the process and all of its group.
"""

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from typing import IO, Any, Final

from tests.real_cli.launch import Home

Frame = dict[str, Any]
DEADLINE_S: Final = 20.0
MAX_STDERR: Final = 64 * 1024


class Missing(AssertionError):
    """What was waited for did not come; the text shows what came instead."""


class Process:
    """A child that speaks stream-json.  ``frames`` grows while it runs; ``code`` is its exit code once it has ended."""

    def __init__(self, command: Sequence[str], home: Home, environment: dict[str, str]) -> None:
        self.frames: list[Frame] = []
        self.stderr = b""
        self.code: int | None = None
        self._numbers = 0
        self._changed = threading.Condition()
        self._child = subprocess.Popen(
            command, cwd=home.work, env=environment, start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self._readers = [
            threading.Thread(target=self._read_stdout, args=(self._child.stdout,), daemon=True),
            threading.Thread(target=self._read_stderr, args=(self._child.stderr,), daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def close(self) -> None:
        """End the process and all of its group, whatever state it is in."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait(DEADLINE_S)
        for reader in self._readers:
            reader.join(DEADLINE_S)
        for stream in (self._child.stdin, self._child.stdout, self._child.stderr):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()

    def write(self, *lines: Frame | str) -> None:
        """All lines in one write: a burst.  A string is written as it is, whether or not it is JSON."""
        text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
        stdin = self._child.stdin
        assert stdin is not None
        # A CLI that has left is what some situations are about; its exit code tells.
        with contextlib.suppress(BrokenPipeError):
            stdin.write(text.encode())
            stdin.flush()

    def control(self, subtype: str, **request: Any) -> Frame:
        """A control request line; its id names the subtype, so that the answer can be told apart: ``interrupt-3``."""
        self._numbers += 1
        request_id = f"{subtype}-{self._numbers}"
        return {"type": "control_request", "request_id": request_id, "request": {"subtype": subtype, **request}}

    def ask(self, subtype: str, **request: Any) -> Frame:
        """Send a control request and wait for its answer; returns the ``response`` object."""
        line = self.control(subtype, **request)
        self.write(line)
        answer: Frame = self.wait(lambda frame: answers(frame, line["request_id"]))["response"]
        return answer

    def wait(self, wanted: Callable[[Frame], bool], count: int = 1, deadline_s: float = DEADLINE_S) -> Frame:
        """The ``count``-th frame that satisfies ``wanted``; raises ``Missing`` at the deadline or when stdout ends."""
        end = time.monotonic() + deadline_s
        with self._changed:
            while True:
                found = [frame for frame in self.frames if wanted(frame)]
                if len(found) >= count:
                    return found[count - 1]
                left = end - time.monotonic()
                if left <= 0 or not self._readers[0].is_alive():
                    kinds = [f"{frame.get('type')}/{frame.get('subtype', '')}" for frame in self.frames]
                    raise Missing(f"not seen in {deadline_s} s; frames: {kinds}; stderr: {self.stderr[-500:]!r}")
                self._changed.wait(min(left, 0.2))

    def wait_result(self, count: int = 1) -> Frame:
        return self.wait(lambda frame: frame.get("type") == "result", count)

    def close_stdin(self) -> None:
        assert self._child.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.close()

    def terminate(self) -> None:
        self._child.send_signal(signal.SIGTERM)

    def wait_exit(self) -> int:
        """The exit code (negative: the signal), once all of its output was read."""
        self.code = self._child.wait(DEADLINE_S)
        for reader in self._readers:
            reader.join(DEADLINE_S)
        return self.code

    def finish(self) -> int:
        """End of input, then the exit code: how most situations end."""
        self.close_stdin()
        return self.wait_exit()

    def _read_stdout(self, stream: IO[bytes]) -> None:
        for line in stream:
            try:
                frame = json.loads(line)
            except (ValueError, RecursionError):
                frame = {"type": "(not JSON)", "line": line.decode(errors="replace")}
            with self._changed:
                self.frames.append(frame)
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def _read_stderr(self, stream: IO[bytes]) -> None:
        while chunk := os.read(stream.fileno(), 65536):
            self.stderr = (self.stderr + chunk)[-MAX_STDERR:]


def answers(frame: Frame, request_id: str) -> bool:
    return frame.get("type") == "control_response" and frame.get("response", {}).get("request_id") == request_id


def is_init(frame: Frame) -> bool:
    return frame.get("type") == "system" and frame.get("subtype") == "init"


def is_delta(frame: Frame) -> bool:
    return frame.get("type") == "stream_event" and frame.get("event", {}).get("type") == "content_block_delta"


def is_message_stop(frame: Frame) -> bool:
    """The end of one answer of the API, as the CLI passes it on."""
    return bool(frame.get("type") == "stream_event" and frame.get("event", {}).get("type") == "message_stop")


def is_permission_prompt(frame: Frame) -> bool:
    return frame.get("type") == "control_request" and frame.get("request", {}).get("subtype") == "can_use_tool"
