"""Whether a tool call may run: what hooks say, what the rules say, and who is asked if neither decides.

Owner and caller: ``simulator.tool_use``.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from simulator import messages, permissions
from simulator.hooks import Verdict
from simulator.messages import Message
from simulator.permissions import Decision

if TYPE_CHECKING:
    from simulator.session import Session

REJECTED: Final = (
    "The user doesn't want to proceed with this tool use. The tool use was rejected (eg. if it was a file edit, the "
    "new_string was NOT written to the file). STOP what you are doing and wait for the user to tell you how to proceed."
)
INTERACTIVE: Final = frozenset({"AskUserQuestion", "ExitPlanMode"})
"""Tools that are made of the user's answer: no rule and no mode spares it."""
_CLOSED: Final = "Tool permission request failed: AbortError: Tool permission stream closed before response received"
_NOBODY_TO_ASK: Final = "This command requires approval"
_BEHAVIORS: Final = ("allow", "deny", "ask")


class Speaker(Protocol):
    """Whose call it is: the turn's or a subagent's."""

    session: "Session"
    denials: list[Message]
    agent: Message
    """``agent_id`` and ``agent_type`` of a subagent, else empty."""

    def listen(self, seconds: float | None, also: Sequence[int] = ()) -> list[int]: ...
    def tell(self, content: list[Message], **extra: Any) -> None: ...


class Denied(Exception):
    """The call does not run: ``text`` is told to the model.  ``stops_turn``: and the turn ends."""

    def __init__(self, text: str, source: str, *, stops_turn: bool = False, is_late: bool = False) -> None:
        super().__init__(text)
        self.text = text
        self.source = source
        self.stops_turn = stops_turn
        self.is_late = is_late
        """A hook did not answer: nobody has denied anything."""


class Consent:
    """One call's way through hooks, rules and prompt."""

    def __init__(self, speaker: Speaker, block: Message) -> None:
        self._speaker = speaker
        self._session = speaker.session
        self._block = block
        self.given: Message = block["input"]
        """What the call will run with; hooks and answers may replace it."""
        self.is_asked = False
        """A prompt is open."""

    def obtain(self, verdict: Verdict) -> Message:
        """How the call came to be allowed, as ``permission_decision`` has it; raises ``Denied``."""
        if verdict.updated_input is not None:
            self.given = verdict.updated_input
        name = self._block["name"]
        if verdict.is_late:
            raise Denied(verdict.reason, "hook", is_late=True)
        if verdict.decision == "deny":
            raise Denied(f"PreToolUse:{name} hook error: {verdict.reason}", "hook")
        decision = self.decide()
        if decision.behavior == "ask" and decision.reason != "rule" and verdict.decision == "allow":
            return {"decision": "accept", "source": "hook", "reason_type": "hook"}
        if decision.behavior == "allow" and verdict.decision != "ask":
            return {"decision": "accept", "source": "hook" if verdict.decision else "config"}
        if decision.behavior != "deny" and self._session.flags.prompts_on_stdio:
            return {"decision": "accept", "source": self._ask(_reason(verdict, decision))}
        text = decision.message or _NOBODY_TO_ASK
        call = {"tool_name": name, "tool_use_id": self._block["id"]}
        self._session.system("permission_denied", **call, decision_reason_type=decision.reason, message=text)
        raise Denied(text, "config")

    def decide(self) -> Decision:
        """What happens before anybody is asked."""
        name, settings = self._block["name"], self._session.settings
        if name in INTERACTIVE:
            return Decision("ask", "other")
        known = "Task" if name == "Agent" else name
        return permissions.decide(known, self.given, settings.mode, settings.rules(), self._session.cwd)

    def prompt(self, reason: Message) -> Message:
        """The request that asks the user."""
        session, block = self._session, {**self._block, "input": self.given}
        cwd, name = session.cwd, self._block["name"]
        if name in INTERACTIVE:
            return messages.can_use_tool(block, requires_user_interaction=True)
        extra = {key: self._speaker.agent[key] for key in ("agent_id",) if key in self._speaker.agent}
        if name.startswith("mcp__"):
            source = {"mcp_server": session.servers.source_of(name)}
            return messages.can_use_tool(block, **source, **reason, **extra)
        hints = permissions.suggestions(name, self.given, cwd)
        path = permissions.blocked_path(name, self.given, cwd)
        return messages.can_use_tool(block, permission_suggestions=hints, blocked_path=path, **reason, **extra)

    def _ask(self, reason: Message) -> str:
        """Prompt on stdout and wait for the answer; raises ``Denied``."""
        session, speaker = self._session, self._speaker
        session.set_state("requires_action")
        prompt = session.questions.ask(self.prompt(reason))
        self.is_asked = True
        session.tell_limits("allowed")
        answer = None
        try:
            while (answer := session.questions.answer(prompt)) is None and not session.is_at_end:
                speaker.listen(None)
        finally:
            session.questions.forget(prompt)
            session.set_state("running")
        self.is_asked = False
        return self._obey(answer)

    def _obey(self, answer: Message | None) -> str:
        if answer is None:
            raise Denied(_CLOSED, "config")
        if answer.get("subtype") != "success":
            raise Denied(f"Tool permission request failed: Error: {answer.get('error')}", "config")
        said = answer.get("response")
        said = said if isinstance(said, dict) else {}
        if said.get("behavior") != "allow":
            stops = said.get("interrupt") is True
            raise Denied(str(said.get("message") or REJECTED), "user_reject", stops_turn=stops)
        if isinstance(said.get("updatedInput"), dict):
            self.given = said["updatedInput"]
        self._learn(said.get("updatedPermissions"))
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


def _reason(verdict: Verdict, decision: Decision) -> Message:
    """Why the user is asked, where a hook wants it or a rule."""
    if verdict.decision == "ask":
        hook = {"decision_reason_hook_event": "PreToolUse", "decision_reason_hook_source": "settings"}
        return {"decision_reason": verdict.reason, "decision_reason_type": "hook", **hook}
    return {}
