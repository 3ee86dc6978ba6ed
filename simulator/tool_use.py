"""What becomes of a tool call: hooks, consent, execution, and the line that tells the result.

Owners and callers: ``simulator.conversation``, ``simulator.subagent``.
"""

from typing import Final

from simulator import files, messages, tools
from simulator.consent import REJECTED, Consent, Denied, Speaker
from simulator.messages import Message
from simulator.tools import ToolResult

AGENT_TOOLS: Final = ("Task", "Agent")
"""Two names of one tool: ``system/init`` says the first, the API's request the second."""


class ToolUse:
    """One ``tool_use`` block of a turn or of a subagent."""

    def __init__(self, speaker: Speaker, block: Message) -> None:
        self._speaker = speaker
        self._session = speaker.session
        self._id: str = block["id"]
        self._name: str = block["name"]
        self._given: Message = block["input"]
        self._consent = Consent(speaker, block)
        self.is_ended_by_hook = False
        """A hook said that the turn must not go on behind this call."""

    def run(self) -> bool:
        """Decide, ask, run and tell; False if the turn must end.

        Raises what ``Speaker.listen`` raises; then ``stop`` is to be called.
        """
        if not self._exists():
            self._session.tell_limits("allowed")
            known = f". {self._name} is disabled for this session, in subagents as well as here."
            text = f"Error: No such tool available: {self._name}{known if self._name in messages.TOOLS else ''}"
            self._tell(ToolResult(f"<tool_use_error>{text}</tool_use_error>", True, text), [])
            return True
        if (problem := files.problem(self._name, self._given)) is not None:
            self._session.tell_limits("allowed")
            self._tell(ToolResult(f"<tool_use_error>{problem}</tool_use_error>", True, f"Error: {problem}"), [])
            return True
        try:
            accepted = self._permit()
        except Denied as denied:
            self._session.tell_limits("allowed")
            self._deny(denied)
            return not denied.stops_turn
        if self._name not in AGENT_TOOLS:
            self._session.tell_limits("allowed")
        result = self._execute()
        self._after(result)
        self._tell(result, [{"id": self._id, "permission_decision": accepted}])
        return True

    def give_up(self) -> None:
        """The turn ends before the call: a prompt for it is out already and is never withdrawn."""
        if self._exists() and self._consent.decide().behavior == "ask" and self._session.flags.prompts_on_stdio:
            self._session.questions.forget(self._session.questions.ask(self._consent.prompt({})))

    def stop(self) -> None:
        """Tell that the user stopped the call, whether or not it had begun to run."""
        if self._consent.is_asked:
            self._speaker.denials.append(self._row())
        self._tell(ToolResult(REJECTED, True, "User rejected tool use"), [self._rejected()])

    def _exists(self) -> bool:
        if self._name.startswith("mcp__"):
            return self._session.has_servers and self._session.servers.has_tool(self._name)
        return ("Task" if self._name in AGENT_TOOLS else self._name) in self._session.tools

    def _permit(self) -> Message:
        """How the call came to be allowed; raises ``Denied``."""
        fields = {"tool_name": self._name, "tool_input": self._given, "tool_use_id": self._id, **self._speaker.agent}
        verdict = self._session.hooks.ask("PreToolUse", self._speaker.listen, fields, self._name, self._id)
        self.is_ended_by_hook = verdict.stop_reason is not None
        try:
            return self._consent.obtain(verdict)
        finally:
            self._given = self._consent.given

    def _execute(self) -> ToolResult:
        session, listen = self._session, self._speaker.listen
        if self._name.startswith("mcp__"):
            return session.servers.call(self._name, self._given, self._id, listen)
        if self._name in AGENT_TOOLS:
            from simulator import subagent  # noqa: PLC0415 - few sessions have one

            return subagent.launch(self._speaker, self._given, self._id)
        if self._name in ("AskUserQuestion", "ExitPlanMode"):
            from simulator import dialogs  # noqa: PLC0415 - likewise

            return dialogs.run(session, self._name, self._given)
        environment = session.settings.tool_environment()
        if self._name == "Bash" and self._given.get("run_in_background") is True:
            return session.tasks.start(self._given, self._id, environment)
        session.checkpoints.keep(self._name, self._given)
        return tools.run(self._name, self._given, environment, listen)

    def _after(self, result: ToolResult) -> None:
        """Ask the hooks that follow a call."""
        fields: Message = {"tool_name": self._name, "tool_input": self._given}
        event = "PostToolUse"
        if result.is_error:
            event = "PostToolUseFailure"
            fields |= {"error": result.content, "is_interrupt": False}
        else:
            fields["tool_response"] = result.shown
        fields |= {"tool_use_id": self._id, "duration_ms": 0, **self._speaker.agent}
        verdict = self._session.hooks.ask(event, self._speaker.listen, fields, self._name, self._id)
        self.is_ended_by_hook = self.is_ended_by_hook or verdict.stop_reason is not None

    def _deny(self, denied: Denied) -> None:
        if denied.is_late:
            self._tell(tools.failed(denied.text), [])
            return
        self._speaker.denials.append(self._row())
        if denied.stops_turn:
            self._tell(ToolResult(REJECTED, True, "User rejected tool use"), [self._rejected()])
            return
        decision = {"decision": "reject", "source": denied.source}
        if denied.source == "hook":
            decision["reason_type"] = "hook"
        meta = {"id": self._id, "non_execution_kind": "permission-rule", "permission_decision": decision}
        self._tell(tools.failed(denied.text), [meta])

    def _row(self) -> Message:
        """What ``permission_denials`` says of the call."""
        return {"tool_name": self._name, "tool_use_id": self._id, "tool_input": self._given}

    def _rejected(self) -> Message:
        return {"id": self._id, "non_execution_kind": "user-rejected"}

    def _tell(self, result: ToolResult, meta: list[Message]) -> None:
        if result.is_error:
            block = {"type": "tool_result", "content": result.content, "is_error": True, "tool_use_id": self._id}
        else:
            block = {"tool_use_id": self._id, "type": "tool_result", "content": result.content}
            block |= {"is_error": False} if self._name == "Bash" else {}
        extra: Message = {"tool_use_result": result.shown}
        if meta:
            extra["tool_result_meta"] = meta
        self._speaker.tell([block], **extra)
