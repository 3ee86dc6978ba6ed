"""Where a situation plays: directories, a Messages API, processes, noted facts; and the lines that are sent.

Callers: the ``situations_*`` modules, which register what they define, and ``recording``.
"""

import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from simulator.messages_api import MessagesApi
from tests.conformance.driver import Frame, Process, is_permission_prompt
from tests.real_cli.launch import FLAGS, Home, environment

TOKEN: Final = "dummy-oauth-token-1"
BAD_TOKEN: Final = "bad-dummy-token"
TOUCH: Final = '[[sim tool="Bash:touch made-by-the-tool"]]'


class Stage:
    """Where one situation plays for one subject: its directories, its API, its processes, the facts it notes."""

    def __init__(self, command: list[str], root: Path, api: MessagesApi, extra: Mapping[str, str]) -> None:
        self.api = api
        self.home = Home.make(root)
        self.session_id = str(uuid.uuid4())
        self.processes: list[Process] = []
        self.facts: dict[str, Any] = {}
        self._command = command
        self._extra = dict(extra)

    def start(self, *flags: str, token: str | None = TOKEN, **variables: str) -> Process:
        """A process that is proven ready, with ``token`` bound late; ``flags`` take the place of the session id."""
        process = self.spawn(*flags, **variables)
        process.ask("get_binary_version")
        if token is not None:
            process.write(bind_token(token))
        return process

    def spawn(self, *flags: str, **variables: str) -> Process:
        """The same without waiting for it and without a credential."""
        chosen = flags or (f"--session-id={self.session_id}",)
        extra = {**self._extra, **variables}
        process = Process([*self._command, *FLAGS, *chosen], self.home, environment(self.home, self.api.url, extra))
        self.processes.append(process)
        return process

    def note(self, **facts: Any) -> None:
        self.facts.update(facts)

    def close(self) -> None:
        for process in self.processes:
            process.close()

    @property
    def touched(self) -> bool:
        """The tool call of ``TOUCH`` really ran."""
        return (self.home.work / "made-by-the-tool").exists()


Situation = Callable[[Stage], None]
SITUATIONS: Final[dict[str, Situation]] = {}
"""Name -> what is played; ``tests.conformance.situations`` fills it."""


def situation(play: Situation) -> Situation:
    """Register a situation under its function's name."""
    SITUATIONS[play.__name__] = play
    return play


def bind_token(token: str) -> Frame:
    return {"type": "update_environment_variables", "variables": {"CLAUDE_CODE_OAUTH_TOKEN": token}}


def user(text: str) -> Frame:
    message = {"role": "user", "content": text}
    return {"type": "user", "message": message, "parent_tool_use_id": None, "uuid": str(uuid.uuid4())}


def permit(prompt: Frame, **decision: Any) -> Frame:
    """The answer to a permission prompt."""
    answer = {"subtype": "success", "request_id": prompt["request_id"], "response": decision}
    return {"type": "control_response", "response": answer}


def await_prompt(process: Process) -> Frame:
    """The permission prompt, once the reply that asked for the tool is over: answering earlier would be a race."""
    prompt = process.wait(is_permission_prompt)
    process.wait(lambda frame: frame.get("event", {}).get("type") == "message_stop")
    return prompt


def said(result: Frame) -> str:
    return str(result.get("result", ""))
