"""One process, one conversation: the queue of user messages, the open prompts, and who is told what.

Owner: ``simulator.cli``.  Callers: ``simulator.controls``, ``simulator.turn``, ``simulator.commands``.
"""

import json
import os
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from simulator import messages
from simulator.controls import answer
from simulator.directives import Directives
from simulator.faults import hang
from simulator.flags import Flags
from simulator.intake import Intake
from simulator.messages import Message
from simulator.output import Output, encode
from simulator.permissions import removed_tools
from simulator.settings import Settings
from simulator.transcript import Transcript, text_of
from simulator.turn import Turn, run_turn
from simulator.usage import Usage

MAX_QUEUE: Final = 10_000


class Leave(Exception):
    """The program must end now: ``code`` is its exit code, ``text`` goes to stderr."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


class UserMessage(NamedTuple):
    """A ``user`` line of stdin."""

    content: Any
    text: str
    uuid: str
    is_composed: bool

    @property
    def is_command(self) -> bool:
        return self.text.startswith("/") and not self.is_composed


class Session:
    """The state that lasts longer than a turn, and the loop that runs the turns."""

    def __init__(self, flags: Flags, settings: Settings, transcript: Transcript, intake: Intake, output: Output,
                 faults: Directives) -> None:  # fmt: skip
        self.flags = flags
        self.settings = settings
        self.transcript = transcript
        self.cwd = os.getcwd()
        self.output = output
        self.turn_defaults = faults._replace(
            exit_code=None, stderr_flood=0, grandchild=0.0, die_after=None, hang=None, ignore_term=False
        )
        """What ``SIMULATOR_FAULTS`` says about turns (pace, length); what acted at the start does not act again."""
        self.version = faults.version or messages.VERSION
        self.usage = Usage(transcript.cost_usd)
        self.queue: deque[UserMessage] = deque()
        self.turn: Turn | None = None
        self.prompts: dict[str, Message] = {}
        """Permission prompts that nobody has answered yet, by request id."""
        self.answers: dict[str, Message] = {}
        self.agents: list[Message] = [{"name": name, "description": text} for name, text in messages.AGENTS]
        self.servers: dict[str, Message] = {}
        """MCP servers by name, each with its status."""
        self.is_initialized = False
        self.first_is_stopped = False
        """The first turn of the process was interrupted before it began; a later turn forgets such an interrupt."""
        self.ignores_eof = faults.ignore_eof
        self.results = 0
        self.state = "idle"
        self.limits = ""
        """What was last told about the rate limit."""
        self.deferred: list[Callable[[], None]] = []
        """Answers that take longer than those to the lines behind them."""
        self._intake = intake
        self._tells_state = os.environ.get("CLAUDE_CODE_EMIT_SESSION_STATE_EVENTS", "") not in {"", "0", "false"}
        self._last_failed = False

    @property
    def session_id(self) -> str:
        return self.transcript.session_id

    @property
    def is_at_end(self) -> bool:
        """stdin has ended: nobody will answer a prompt any more."""
        return self._intake.eof

    @property
    def was_signalled(self) -> bool:
        """SIGINT came: the turn ends, and then the process."""
        return self._intake.interrupted

    @property
    def tools(self) -> list[str]:
        """Names of the tools that exist in this session."""
        chosen = self.flags.tools
        names = [name for name in messages.TOOLS if chosen is None or name in chosen or "default" in chosen]
        return [name for name in names if name not in removed_tools(self.flags.disallowed)]

    def run(self) -> int:
        """Run turns until stdin ends or a signal comes; returns the exit code.  Raises ``Leave``."""
        is_fresh = True
        while not self.was_signalled:
            if self.queue:
                # The first message of an idle process has a turn of its own; what queued up meanwhile shares the next.
                run_turn(self, self._take(alone=is_fresh))
                is_fresh = not self.queue
            elif self._intake.eof:
                break
            else:
                self.listen(None)
        self.transcript.flush()
        if self.ignores_eof and not self.was_signalled:
            hang()
        return 1 if self._last_failed and not self.was_signalled else 0

    def listen(self, seconds: float | None, also: Sequence[int] = ()) -> list[int]:
        """Wait for at most ``seconds`` and act on what came; returns the readable ones of ``also``.

        Returns early when anything happened.  Raises ``Leave``.
        """
        seconds = self.transcript.sooner(seconds)
        ready = self._intake.wait(seconds, also)
        while (line := self._intake.take()) is not None:
            self._dispatch(line)
        while self.deferred:
            self.deferred.pop(0)()
        if self.was_signalled and self.turn is not None:
            self.turn.is_stopped = True
        self.transcript.flush_if_due()
        return ready

    def send(self, message: Message) -> None:
        self.output.send(message)

    def system(self, subtype: str, **fields: Any) -> None:
        """Say a small ``system`` message."""
        self.send(messages.system(self.session_id, subtype, **fields))

    def lifecycle(self, uuid: str, state: str) -> None:
        """Tell what became of a user message, if it has a ``uuid``."""
        if uuid:
            self.send(messages.lifecycle(self.session_id, uuid, state))

    def set_state(self, state: str) -> None:
        """Tell ``idle``, ``running`` or ``requires_action`` where the environment asks for it."""
        if state != self.state:
            self.state = state
            if self._tells_state:
                self.system("session_state_changed", state=state)

    def tell_limits(self, status: str) -> None:
        """Tell a subscription (an OAuth token) how its rate limit stands, if that is news."""
        credential = self.settings.credential()
        if credential is not None and credential.kind == "oauth_token" and status != self.limits:
            self.limits = status
            info = {"status": status, "isUsingOverage": False}
            self.send({"type": "rate_limit_event", "rate_limit_info": info, **messages.tail(self.session_id)})

    def finish_turn(self, result: Message, uuids: list[str], state: str) -> None:
        """Say the ``result``, after the transcript is on disk, and what became of the turn's messages.

        All in one write: whoever kills the process at the ``result`` still gets what belongs to it.
        """
        self.transcript.flush()
        self.results += 1
        self._last_failed = bool(result["is_error"])
        frames = [result, *(messages.lifecycle(self.session_id, uuid, state) for uuid in uuids)]
        if not self.queue and not self.was_signalled:
            self.state = "idle"
            if self._tells_state:
                frames.append(messages.system(self.session_id, "session_state_changed", state="idle"))
        self.output.lines([encode(frame) for frame in frames])

    def fold(self) -> list[UserMessage]:
        """Take what came while a tool ran, for the running turn; commands wait for their own."""
        folded = []
        while self.queue and not self.queue[0].is_command:
            folded.append(self.queue.popleft())
        return folded

    def _take(self, *, alone: bool) -> list[UserMessage]:
        batch = [self.queue.popleft()]
        while self.queue and not alone and not batch[0].is_command and not self.queue[0].is_command:
            batch.append(self.queue.popleft())
        return batch

    def _dispatch(self, line: bytes) -> None:
        """Act on one line of stdin."""
        if not line.strip():
            return
        try:
            message = json.loads(line)
        except (ValueError, RecursionError) as error:
            length = len(line) + 1
            raise Leave(1, f"Error parsing streaming input line (type=unknown, {length} chars): SyntaxError") from error
        if not isinstance(message, dict):
            return
        kind = message.get("type")
        if kind == "user":
            self._accept(message)
        elif kind == "control_request":
            self._control(message)
        elif kind == "control_response":
            self._answer(message.get("response"))
        elif kind == "update_environment_variables":
            self.settings.update_environment(message.get("variables"))

    def _accept(self, line: Message) -> None:
        """Queue a user message."""
        message = line.get("message")
        role = message.get("role", "undefined") if isinstance(message, dict) else "undefined"
        if role != "user" or not isinstance(message, dict):
            raise Leave(1, f"Error: Expected message role 'user', got '{role}'")
        content = message.get("content")
        uuid = line["uuid"] if isinstance(line.get("uuid"), str) else ""
        if not isinstance(content, (str, list)) or len(self.queue) >= MAX_QUEUE:
            self.lifecycle(uuid, "completed")
            return
        if self.state == "idle":
            self.set_state("running")
        self.lifecycle(uuid, "queued")
        self.queue.append(UserMessage(content, text_of(content), uuid, bool(line.get("client_composed"))))
        if self.flags.replay:
            self.send({**messages.user(self.session_id, content), **({"uuid": uuid} if uuid else {}), "isReplay": True})

    def _control(self, message: Message) -> None:
        request = message.get("request")
        if not isinstance(request, dict):
            raise Leave(1, "Error: Missing request on control_request")
        answer(self, str(message.get("request_id", "")), request)

    def _answer(self, response: Any) -> None:
        """An answer to a permission prompt; one to anything else is ignored."""
        request_id = response.get("request_id") if isinstance(response, dict) else None
        if isinstance(request_id, str) and self.prompts.pop(request_id, None) is not None:
            self.answers[request_id] = response
