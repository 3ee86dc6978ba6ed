"""What runs on beside the turns: commands that Bash put into the background, and subagents.

They are told about in ``task_*`` messages.  One that ends by itself is news for the model: the program begins a turn of
its own.  Bound: 32 at a time.
Owner: ``simulator.session``.  Callers: ``simulator.tool_use``, ``simulator.subagent``, ``simulator.controls``.
"""

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from simulator import tools
from simulator.messages import Message
from simulator.tools import ToolResult, failed
from simulator.transcript import project_dir

if TYPE_CHECKING:
    from simulator.session import Session

MAX_TASKS: Final = 32


class Task:
    """One of them."""

    def __init__(self, kind: str, description: str, tool_use_id: str, output_file: str) -> None:
        self.id = ("a" if kind == "local_agent" else "b") + os.urandom(8).hex()[: 16 if kind == "local_agent" else 8]
        self.run_id = f"0{os.urandom(4).hex()}-{os.urandom(4).hex()}"
        self.kind = kind
        self.description = description
        self.tool_use_id = tool_use_id
        self.output_file = output_file
        self.agent_type: str | None = None
        self.pid = 0
        self.death: int | None = None
        """What becomes readable when the command has ended."""

    @property
    def names(self) -> Message:
        return {"task_id": self.id, "run_id": self.run_id}

    @property
    def agent(self) -> Message:
        return {"subagent_type": self.agent_type} if self.agent_type else {}


class Tasks:
    """All of a session."""

    def __init__(self, session: "Session") -> None:
        self._session = session
        self._running: dict[str, Task] = {}
        self.waiting: list[Callable[[], None]] = []
        """Subagents that begin when the turn at hand has ended."""
        self._news: list[Task] = []

    @property
    def fds(self) -> list[int]:
        return [task.death for task in self._running.values() if task.death is not None]

    @property
    def are_disabled(self) -> bool:
        return os.environ.get("CLAUDE_CODE_DISABLE_BACKGROUND_TASKS", "") not in {"", "0", "false"}

    def start(self, given: Message, tool_use_id: str, environment: dict[str, str]) -> ToolResult:
        """Run a command beside the turns."""
        import subprocess  # noqa: PLC0415 - 6 ms that a process without tools shall not pay

        if len(self._running) >= MAX_TASKS:
            return failed(f"Too many background tasks: at most {MAX_TASKS}")
        command = str(given.get("command", ""))
        description = str(given.get("description") or command)
        task = Task("local_bash", description, tool_use_id, "")
        task.output_file = os.path.join(self._folder(), f"{task.id}.output")
        with open(task.output_file, "wb") as file:
            child = subprocess.Popen(
                ["/bin/sh", "-c", command], stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment
            )
        tools.kill_at_exit(child.pid)
        task.pid, task.death = child.pid, os.pidfd_open(child.pid)
        self.add(task, is_backgrounded=True)
        text = f"Command running in background with ID: {task.id}. Output is being written to: {task.output_file}. "
        text += "You will be notified when it completes. To check interim output, use Read on that file path."
        shown = {"stdout": "", "stderr": "", "interrupted": False, "isImage": False, "noOutputExpected": False}
        return ToolResult(text, False, {**shown, "backgroundTaskId": task.id})

    def add(self, task: Task, *, is_backgrounded: bool, **more: Any) -> None:
        """Tell that a task has begun."""
        self._running[task.id] = task
        if is_backgrounded:
            self._tell_all()
        self._session.system(
            "task_started", **task.names, tool_use_id=task.tool_use_id, description=task.description, **task.agent,
            is_backgrounded=is_backgrounded, task_type=task.kind, **more,
        )  # fmt: skip

    def end(
        self, task: Task, status: str, summary: str, *, is_backgrounded: bool, usage: Message | None = None
    ) -> None:
        """Tell how a task has ended: ``completed``, ``failed`` or ``killed``."""
        self._running.pop(task.id, None)
        if task.death is not None:
            os.close(task.death)
            tools.forget(task.pid)
        patch = {"status": status, "end_time": round(time.time() * 1000)}
        self._session.system("task_updated", **task.names, patch=patch)
        self._session.system(
            "task_notification", **task.names, tool_use_id=task.tool_use_id,
            status="stopped" if status == "killed" else status, output_file=task.output_file, summary=summary,
            **({"usage": usage} if usage is not None else {}),
        )  # fmt: skip
        if is_backgrounded:
            self._tell_all()
            if status != "killed":
                self._news.append(task)

    def look(self) -> None:
        """Notice commands that have ended."""
        for task in [task for task in self._running.values() if task.death is not None]:
            pid, status = os.waitpid(task.pid, os.WNOHANG)
            if not pid:
                continue
            code = os.waitstatus_to_exitcode(status)
            how = "completed (exit code 0)" if code == 0 else f"failed with exit code {code}"
            summary = f'Background command "{task.description}" {how}'
            self.end(task, "completed" if code == 0 else "failed", summary, is_backgrounded=True)

    def stop(self, task_id: str) -> None:
        """``stop_task``; one that is not there is nobody's fault."""
        task = self._running.get(task_id)
        if task is None:
            return
        self._session.deferred.append(self._session.rest)
        if task.death is not None:
            tools.kill(task.pid)
            os.waitpid(task.pid, 0)
        self.end(task, "killed", task.description, is_backgrounded=True)

    def stop_agents(self) -> None:
        """What an interrupt between turns does."""
        for task in [task for task in self._running.values() if task.kind == "local_agent"]:
            self.stop(task.id)

    def output(self, task_id: str) -> bytes:
        """The end of what a command has written."""
        task = self._running.get(task_id)
        if task is None or not task.output_file:
            return b""
        with open(task.output_file, "rb") as file:
            return file.read()

    def is_running(self, task_id: str) -> bool:
        return task_id in self._running

    @property
    def has_agent(self) -> bool:
        """A subagent runs on, and the session with it."""
        return bool(self.waiting) or any(task.kind == "local_agent" for task in self._running.values())

    def take_news(self) -> Message | None:
        """``origin`` of the turn that an ended task asks for, once each."""
        if not self._news:
            return None
        task = self._news.pop(0)
        return {"kind": "task-notification", "producer": "session-task", "runId": task.run_id}

    def _folder(self) -> str:
        """Where commands write, made if need be."""
        project = os.path.basename(project_dir(self._session.cwd))
        root = os.environ.get("TMPDIR") or "/tmp"  # noqa: S108 - the real program's place, too
        folder = os.path.join(root, f"claude-{os.getuid()}", project, self._session.session_id, "tasks")
        os.makedirs(folder, mode=0o700, exist_ok=True)
        return folder

    def _tell_all(self) -> None:
        rows = [
            {**task.names, "task_type": task.kind, **task.agent, "description": task.description}
            for task in self._running.values()
        ]
        self._session.system("background_tasks_changed", tasks=rows)
