"""One process, one conversation: what waits, what is open, and who is told what.

Owner: ``simulator.cli``.  Callers: ``simulator.controls``, ``simulator.turn``, and everything that speaks in a turn.
"""

import json
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, NoReturn

from simulator import extensions, messages, structured
from simulator.checkpoints import Checkpoints
from simulator.controls import answer
from simulator.debug import DebugLog
from simulator.directives import Directives
from simulator.faults import hang
from simulator.flags import Flags
from simulator.hooks import Hooks
from simulator.inbox import MAX_MESSAGES, Inbox
from simulator.intake import Intake
from simulator.messages import Message
from simulator.output import Output, encode
from simulator.permissions import removed_tools
from simulator.questions import Questions
from simulator.settings import Settings
from simulator.tasks import Tasks
from simulator.transcript import Transcript
from simulator.turn import Turn, run_turn
from simulator.usage import Usage

if TYPE_CHECKING:
    from simulator.mcp import Steps
    from simulator.servers import Servers

_OFF: Final = ("", "0", "false")


class Leave(Exception):
    """The program must end now: ``code`` is its exit code, ``text`` goes to stderr."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


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
        self.usage = Usage(transcript.cost_state)
        self.debug = DebugLog(flags.debug, flags.debug_file)
        self.extensions = extensions.load(flags, self.cwd)
        self.inbox = Inbox()
        self.turn: Turn | None = None
        self.last_text = ""
        """What the user said last: the model, woken by a task, answers that again."""
        self.questions = Questions(self.send)
        self.hooks = Hooks(self)
        self.tasks = Tasks(self)
        self.checkpoints = Checkpoints()
        self.agents: list[Message] = [{"name": name, "description": text} for name, text in messages.AGENTS]
        self.agents += self.extensions.agents
        self.shows_subagents = os.environ.get("CLAUDE_CODE_FORWARD_SUBAGENT_TEXT", "") not in _OFF
        """The text of a subagent in the foreground is told."""
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
        self._servers: Servers | None = None
        self._held: tuple[Steps[Any], Callable[[Steps[Any]], bool]] | None = None
        """What the lines behind it wait for."""
        self._tells_state = os.environ.get("CLAUDE_CODE_EMIT_SESSION_STATE_EVENTS", "") not in _OFF
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
        names += [structured.TOOL] if self.settings.schema is not None else []
        return [name for name in names if name not in removed_tools(self.flags.disallowed)]

    @property
    def has_servers(self) -> bool:
        return self._servers is not None

    @property
    def servers(self) -> "Servers":
        """The MCP servers; the first look at them loads what it takes to reach one."""
        if self._servers is None:
            from simulator.servers import Servers  # noqa: PLC0415 - only sessions with MCP servers pay for an HTTP client

            self._servers = Servers(self)
        return self._servers

    def run(self) -> int:
        """Run turns until stdin ends or a signal comes; returns the exit code.  Raises ``Leave``."""
        is_fresh = True
        while not self.was_signalled:
            if self.inbox:
                # The first message of an idle process has a turn of its own; what queued up meanwhile shares the next.
                run_turn(self, self.inbox.take(alone=is_fresh))
                is_fresh = not self.inbox
            elif self.tasks.waiting:
                self.tasks.waiting.pop(0)()
            elif (origin := self.tasks.take_news()) is not None:
                self.set_state("running")
                run_turn(self, [], origin)
            elif self._intake.eof and self._held is None:
                break
            else:
                self.listen(None)
        self.transcript.end(self.usage.state())
        if self.ignores_eof and not self.was_signalled:
            hang()
        return 1 if self._last_failed and not self.was_signalled else 0

    def listen(self, seconds: float | None, also: Sequence[int] = ()) -> list[int]:
        """Wait for at most ``seconds`` and act on what came; returns the readable ones of ``also``.

        Returns early when anything happened.  Raises ``Leave``.
        """
        seconds = self.transcript.sooner(seconds)
        watched = [*also, *self.tasks.fds]
        if self._servers is not None:
            seconds = self._servers.sooner(seconds)
            watched += self._servers.fds
        ready = self._intake.wait(seconds, watched)
        self._go_on()
        while self._held is None and (line := self._intake.take()) is not None:
            self._dispatch(line)
        while self.deferred:
            self.deferred.pop(0)()
        if self.is_at_end:
            self.questions.close()
        self._go_on()
        self.tasks.look()
        if self.was_signalled and self.turn is not None:
            self.turn.is_stopped = True
        self.transcript.flush_if_due()
        return [descriptor for descriptor in ready if descriptor in also]

    def hold(self, steps: "Steps[Any]", finish: "Callable[[Steps[Any]], bool]") -> None:
        """Look at no further line until ``finish`` says that ``steps`` are at their end."""
        self._held = steps, finish
        self._go_on()

    def _go_on(self) -> None:
        """Let what takes time go on."""
        if self._servers is not None:
            self._servers.advance()
        if self._held is not None:
            steps, finish = self._held
            if finish(steps):
                self._held = None

    def send(self, message: Message) -> None:
        self.output.send(message)

    def system(self, subtype: str, **fields: Any) -> None:
        """Say a small ``system`` message."""
        self.send(messages.system(self.session_id, subtype, **fields))

    def lifecycle(self, uuid: str, state: str) -> None:
        """Tell what became of a user message, if it has a ``uuid``."""
        if uuid:
            self.send(messages.lifecycle(self.session_id, uuid, state))

    def replay(self, content: Any, uuid: str) -> None:
        """Repeat a user message that a turn has taken up, where the flags ask for it."""
        if self.flags.replay:
            line = messages.user(self.session_id, content)
            self.send({**line, **({"uuid": uuid} if uuid else {}), "isReplay": True})

    def set_state(self, state: str) -> None:
        """Tell ``idle``, ``running`` or ``requires_action`` where the environment asks for it."""
        if state != self.state:
            self.state = state
            if self._tells_state:
                self.system("session_state_changed", state=state)

    def rest(self) -> None:
        """Say ``idle`` between two turns, again if it was said before, unless something is going on."""
        if self.turn is None and not self.inbox and not self.tasks.has_agent:
            self.state = ""
            self.set_state("idle")

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
        if not self.inbox and not self.was_signalled and not self.tasks.has_agent:
            self.state = "idle"
            if self._tells_state:
                frames.append(messages.system(self.session_id, "session_state_changed", state="idle"))
        self.output.lines([encode(frame) for frame in frames])

    def fail(self, text: str) -> NoReturn:
        """End the program as one that is broken: a zeroed ``result``, ``text`` on stderr, exit code 1."""
        self.send(messages.startup_failure(self.session_id, text, None))
        raise Leave(1, text)

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
            self.questions.accept(message.get("response"))
            if self.flags.replay:
                self.send(message)
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
        is_known = uuid in self.transcript.known
        if not isinstance(content, (str, list)) or len(self.inbox) >= MAX_MESSAGES or is_known:
            self.lifecycle(uuid, "completed")
            return
        if self.state == "idle":
            self.set_state("running")
        self.lifecycle(uuid, "queued")
        if self.inbox.put(line, content, uuid).is_urgent and self.turn is not None:
            self.turn.preempt()

    def _control(self, message: Message) -> None:
        request = message.get("request")
        if not isinstance(request, dict):
            raise Leave(1, "Error: Missing request on control_request")
        answer(self, str(message.get("request_id", "")), request)
