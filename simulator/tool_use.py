"""What becomes of a tool call: permission, prompt, execution, and the line that tells the result.

Owner and caller: ``simulator.turn``.
"""

from typing import TYPE_CHECKING, Any, Final

from simulator import messages, permissions, tools
from simulator.ids import random_uuid
from simulator.messages import Message
from simulator.tools import ToolResult

if TYPE_CHECKING:
    from simulator.turn import Turn

_REJECTED: Final = (
    "The user doesn't want to proceed with this tool use. The tool use was rejected (eg. if it was a file edit, the "
    "new_string was NOT written to the file). STOP what you are doing and wait for the user to tell you how to proceed."
)
_CLOSED: Final = "Tool permission request failed: AbortError: Tool permission stream closed before response received"
_NOBODY_TO_ASK: Final = "This command requires approval"
_BEHAVIORS: Final = ("allow", "deny", "ask")


class Denied(Exception):
    """The call does not run: ``text`` is told to the model.  ``stops_turn``: and the turn ends."""

    def __init__(self, text: str, source: str, *, stops_turn: bool = False) -> None:
        super().__init__(text)
        self.text = text
        self.source = source
        self.stops_turn = stops_turn


class ToolUse:
    """One ``tool_use`` block of a turn."""

    def __init__(self, turn: "Turn", block: Message) -> None:
        self._turn = turn
        self._block = block
        self._session = turn.session
        self._id: str = block["id"]
        self._name: str = block["name"]
        self._given: Message = block["input"]
        self._was_asked = False
        """A prompt is open."""

    def run(self) -> bool:
        """Decide, ask, run and tell; False if the turn must end.

        Raises what ``Turn.listen`` raises; then ``stop`` is to be called.
        """
        if not self._exists():
            text = f"<tool_use_error>Error: No such tool available: {self._name}</tool_use_error>"
            self._tell(ToolResult(text, True, f"Error: No such tool available: {self._name}"), [])
            return True
        try:
            accepted = self._permit()
        except Denied as denied:
            self._session.tell_limits("allowed")
            self._deny(denied)
            return not denied.stops_turn
        self._session.tell_limits("allowed")
        result = tools.run(self._name, self._given, self._session.settings.tool_environment(), self._turn.listen)
        self._tell(result, [{"id": self._id, "permission_decision": {"decision": "accept", "source": accepted}}])
        return True

    def stop(self) -> None:
        """Tell that the user stopped the call, whether or not it had begun to run."""
        if self._was_asked:
            self._turn.denials.append(self._row())
        self._tell(ToolResult(_REJECTED, True, "User rejected tool use"), [self._rejected()])

    def _exists(self) -> bool:
        if self._name.startswith("mcp__"):
            server = self._session.servers.get(self._name.split("__")[1], {})
            return server.get("status") == "connected"
        return self._name in self._session.tools

    def _permit(self) -> str:
        """Who allowed the call; raises ``Denied``."""
        session, settings = self._session, self._session.settings
        decision = permissions.decide(self._name, self._given, settings.mode, settings.rules(), session.cwd)
        if decision.behavior == "allow":
            return "config"
        if decision.behavior == "ask" and session.flags.prompts_on_stdio:
            return self._ask()
        text = decision.message or _NOBODY_TO_ASK
        call = {"tool_name": self._name, "tool_use_id": self._id}
        session.system("permission_denied", **call, decision_reason_type=decision.reason, message=text)
        raise Denied(text, "config")

    def _ask(self) -> str:
        """Prompt on stdout and wait for the answer; raises ``Denied``."""
        session, turn = self._session, self._turn
        prompt_id = random_uuid()
        hints = permissions.suggestions(self._name, self._given, session.cwd)
        path = permissions.blocked_path(self._name, self._given, session.cwd)
        prompt = messages.can_use_tool(prompt_id, self._block, hints, path)
        session.set_state("requires_action")
        session.prompts[prompt_id] = prompt
        turn.prompt_id, self._was_asked = prompt_id, True
        session.send(prompt)
        session.tell_limits("allowed")
        try:
            while prompt_id not in session.answers and not session.is_at_end:
                turn.listen(None)
        finally:
            turn.prompt_id = None
            session.prompts.pop(prompt_id, None)
            session.set_state("running")
        self._was_asked = False
        return self._obey(session.answers.pop(prompt_id, None))

    def _obey(self, answer: Message | None) -> str:
        if answer is None:
            raise Denied(_CLOSED, "config")
        if answer.get("subtype") != "success":
            raise Denied(f"Tool permission request failed: Error: {answer.get('error')}", "config")
        payload = answer.get("response")
        payload = payload if isinstance(payload, dict) else {}
        if payload.get("behavior") != "allow":
            stops = payload.get("interrupt") is True
            raise Denied(str(payload.get("message") or _REJECTED), "user_reject", stops_turn=stops)
        if isinstance(payload.get("updatedInput"), dict):
            self._given = payload["updatedInput"]
        self._learn(payload.get("updatedPermissions"))
        return "user_temporary"

    def _learn(self, updates: Any) -> None:
        """Rules and modes that came with an answer."""
        for update in updates if isinstance(updates, list) else []:
            if not isinstance(update, dict):
                continue
            rules = update.get("rules") if isinstance(update.get("rules"), list) else []
            texts = [text for rule in rules or [] if (text := permissions.rule_text(rule))]
            if update.get("type") == "addRules" and update.get("behavior") in _BEHAVIORS:
                self._session.settings.add_rules(update["behavior"], texts, str(update.get("destination")))
            elif update.get("type") == "setMode" and isinstance(update.get("mode"), str):
                self._session.settings.mode = update["mode"]

    def _deny(self, denied: Denied) -> None:
        self._turn.denials.append(self._row())
        if denied.stops_turn:
            self._tell(ToolResult(_REJECTED, True, "User rejected tool use"), [self._rejected()])
            return
        decision = {"decision": "reject", "source": denied.source}
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
        self._turn.tell([block], **extra)
