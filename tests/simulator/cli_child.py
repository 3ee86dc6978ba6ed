"""A simulated CLI as a child on pipes, for tests: written to, waited for with deadlines, and always ended.

Single-threaded: one ``select`` per wait.  stderr goes to a file, so that a flood cannot block the child.
Owner: the ``with`` block of a test.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

Frame = dict[str, Any]
ROOT: Final = Path(__file__).resolve().parents[2]
DEADLINE_S: Final = 15.0
BASE_FLAGS: Final = (
    "-p", "--input-format=stream-json", "--output-format=stream-json", "--verbose", "--include-partial-messages",
    "--permission-prompt-tool=stdio", "--setting-sources=", "--strict-mcp-config",
)  # fmt: skip
TOKEN: Final = "dummy-oauth-token"


class Ended(AssertionError):
    """stdout ended, or the deadline came, before what was waited for."""


class Child:
    """One process; ``frames`` is everything it said so far, ``raw`` the same as lines."""

    def __init__(self, home: Path, *flags: str, base: tuple[str, ...] = BASE_FLAGS, token: str | None = TOKEN,
                 **environment: str) -> None:  # fmt: skip
        self.work = home / "work"
        self.work.mkdir(parents=True, exist_ok=True)
        self.config = home / "config"
        self.raw: list[bytes] = []
        self.frames: list[Frame] = []
        self._tail = b""
        self._seen = 0
        self._stderr = open(home / "stderr", "w+b")  # noqa: SIM115 - closed in close()
        env = {"PATH": os.environ["PATH"], "HOME": str(home), "LANG": "C.UTF-8", "PYTHONPATH": str(ROOT)}
        env["CLAUDE_CONFIG_DIR"] = str(self.config)
        env |= {"CLAUDE_CODE_OAUTH_TOKEN": token} if token else {}
        env |= environment
        self.started = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "simulator.cli", *base, *flags], cwd=self.work, env=env, start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr,
        )  # fmt: skip
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._stdin, self._stdout = self.process.stdin, self.process.stdout

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(DEADLINE_S)
        with contextlib.suppress(BrokenPipeError):
            self._stdin.close()
        self._stdout.close()
        self._stderr.close()

    @property
    def stderr(self) -> bytes:
        self._stderr.seek(0)
        return self._stderr.read()

    def send(self, *messages: Frame | bytes) -> None:
        """All lines in one write."""
        lines = [message if isinstance(message, bytes) else json.dumps(message).encode() for message in messages]
        self._stdin.write(b"".join(line + b"\n" for line in lines))
        self._stdin.flush()

    def say(self, text: str, **fields: Any) -> None:
        """Send a user message."""
        self.send(user(text, **fields))

    def ask(self, subtype: str, **request: Any) -> Frame:
        """Send a control request; returns the ``response`` object of its answer."""
        line = control(subtype, **request)
        self.send(line)
        answer: Frame = self.until(lambda frame: is_answer(frame, line["request_id"]))["response"]
        return answer

    def until(self, wanted: Callable[[Frame], bool], within_s: float = DEADLINE_S) -> Frame:
        """The next frame, behind the last one found, that satisfies ``wanted``; raises ``Ended``."""
        end = time.monotonic() + within_s
        while True:
            while self._seen < len(self.frames):
                self._seen += 1
                if wanted(frame := self.frames[self._seen - 1]):
                    return frame
            if not self._read(end - time.monotonic()):
                raise self._ended("stdout has ended")

    def turn(self, text: str, **fields: Any) -> list[Frame]:
        """Send a message and return all frames up to its ``result``."""
        self._seen = start = len(self.frames)
        self.say(text, **fields)
        self.until(is_result)
        return self.frames[start : self._seen]

    def result(self, text: str, **fields: Any) -> Frame:
        """Send a message and return its ``result``."""
        return next(frame for frame in self.turn(text, **fields) if is_result(frame))

    def close_stdin(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._stdin.close()

    def drain(self) -> list[bytes]:
        """Read to the end of stdout; returns all lines since the start."""
        end = time.monotonic() + DEADLINE_S
        while self._read(end - time.monotonic()):
            pass
        return self.raw

    def wait(self) -> int:
        """Exit code, once stdout has ended."""
        self.drain()
        return self.process.wait(DEADLINE_S)

    def finish(self) -> int:
        """Close stdin and wait for the exit code."""
        self.close_stdin()
        return self.wait()

    def _read(self, seconds: float) -> bool:
        """Take in one chunk; False at the end of stdout.  Raises ``Ended`` at the deadline."""
        ready, _, _ = select.select([self._stdout], [], [], max(0.0, seconds))
        if not ready:
            raise self._ended("the deadline is over")
        chunk = os.read(self._stdout.fileno(), 1 << 20)
        *lines, self._tail = (self._tail + chunk).split(b"\n")
        for line in lines:
            self.raw.append(line)
            with contextlib.suppress(ValueError):
                self.frames.append(json.loads(line))
        return bool(chunk)

    def _ended(self, why: str) -> Ended:
        return Ended(f"{why}; last frames: {[kind(frame) for frame in self.frames[-12:]]}; {self.stderr[-400:]!r}")


def user(text: Any, **fields: Any) -> Frame:
    return {"type": "user", "message": {"role": "user", "content": text}, "parent_tool_use_id": None, **fields}


_numbers = iter(range(1, 1_000_000))


def control(subtype: str, **request: Any) -> Frame:
    head = {"type": "control_request", "request_id": f"c{next(_numbers)}"}
    return {**head, "request": {"subtype": subtype, **request}}


def permit(prompt: Frame, **answer: Any) -> Frame:
    """The answer to a permission prompt."""
    body = {"subtype": "success", "request_id": prompt["request_id"], "response": answer}
    return {"type": "control_response", "response": body}


def bind_token(token: str) -> Frame:
    return {"type": "update_environment_variables", "variables": {"CLAUDE_CODE_OAUTH_TOKEN": token}}


def kind(frame: Frame) -> str:
    """A short name: ``result/success``, ``stream_event/message_start``, ``assistant``."""
    event = frame.get("event", {})
    detail = event.get("type") or frame.get("subtype") or frame.get("state")
    return f"{frame.get('type')}/{detail}" if detail else str(frame.get("type"))


def is_answer(frame: Frame, request_id: str) -> bool:
    return frame.get("type") == "control_response" and frame["response"]["request_id"] == request_id


def is_result(frame: Frame) -> bool:
    return frame.get("type") == "result"


def is_init(frame: Frame) -> bool:
    return frame.get("subtype") == "init"


def is_prompt(frame: Frame) -> bool:
    return frame.get("type") == "control_request"


def is_delta(frame: Frame) -> bool:
    return frame.get("type") == "stream_event" and frame["event"]["type"] == "content_block_delta"


def deltas(frames: list[Frame]) -> str:
    """All streamed text."""
    return "".join(frame["event"]["delta"].get("text", "") for frame in frames if is_delta(frame))


def tool_results(frames: list[Frame]) -> list[Frame]:
    """The ``tool_result`` blocks."""
    blocks = [frame["message"]["content"][0] for frame in frames if frame.get("type") == "user"]
    return [block for block in blocks if block["type"] == "tool_result"]
