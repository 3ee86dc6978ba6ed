"""Hooks that live in the host: registered by ``initialize``, asked through ``hook_callback``, obeyed.

PreToolUse, PostToolUse, PostToolUseFailure, UserPromptSubmit and Stop are asked; other events can be registered and
never come.  All hooks of an event are asked at the same time.  As with 2.1.329, a later ``initialize`` replaces them
all, an answer that is an error counts as empty unless the hook says ``onFailure: "block"``, and one that does not come
in time blocks.  Context for the model (``additionalContext``) is taken and has no effect: no model reads it here.

Owner: ``simulator.session``.  Callers: ``simulator.controls``, ``simulator.turn``, ``simulator.tool_use``,
``simulator.conversation``.
"""

import re
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from simulator.ids import random_uuid
from simulator.messages import Message
from simulator.questions import payload
from simulator.transcript import project_dir

if TYPE_CHECKING:
    from simulator.session import Session

Listen = Callable[[float | None, Sequence[int]], list[int]]

DEFAULT_TIMEOUT_S: Final = 600.0
MALFORMED: Final = (
    "initialize: hooks must map hook events to arrays of matchers carrying hookCallbackIds arrays and string matchers"
)
_EXACT: Final = re.compile(r"[A-Za-z0-9_|]+")
_DECISIONS: Final = ("allow", "deny", "ask")
_STRONGEST: Final = ("deny", "ask", "allow")
_FAILED: Final = "Hook callback {} failed: the SDK host replied with an error or an invalid answer."
_BLOCKING: Final = '[callback]: failed; blocking because onFailure is "block"\n'
_PROMPT_BLOCKED: Final = "UserPromptSubmit operation blocked by hook:\n"
_NO_STOP: Final = "Stop says: The app driving this session didn't respond, so this turn ended without it."
_SILENT_TOOL: Final = (
    "PreToolUse hook did not respond before its timeout (host client may be unreachable). The tool call was not "
    "executed; other configured hooks may not have completed."
)


class Hook(NamedTuple):
    """One callback of the host's."""

    event: str
    matcher: str
    callback_id: str
    timeout_s: float
    blocks_on_failure: bool

    def is_for(self, name: str) -> bool:
        """Whether the matcher names the tool; one that is no regular expression matches nothing."""
        if self.matcher in {"", "*"}:
            return True
        if _EXACT.fullmatch(self.matcher):
            return name in self.matcher.split("|")
        try:
            return re.search(self.matcher, name) is not None
        except re.error:
            return False


class Verdict(NamedTuple):
    """What all hooks of an event said together; the defaults are no opinion."""

    decision: str | None = None
    """``allow``, ``deny`` or ``ask``."""
    reason: str = ""
    updated_input: Message | None = None
    stop_reason: str | None = None
    """``continue: false``: the turn ends behind the tool call."""
    is_late: bool = False
    """A hook did not answer in time."""


class Hooks:
    """The hooks of a session."""

    def __init__(self, session: "Session") -> None:
        self._session = session
        self._hooks: list[Hook] = []
        self._prompt_id = random_uuid()
        """A turn's name in what hooks are told."""

    def register(self, hooks: Any) -> bool:
        """``hooks`` of an ``initialize`` in place of the earlier ones; None is none.  False if it is malformed."""
        found: list[Hook] = []
        groups = hooks.items() if isinstance(hooks, dict) else ()
        if hooks is not None and not isinstance(hooks, dict):
            return False
        for event, rows in groups:
            if not isinstance(rows, list):
                return False
            for row in rows:
                if not _is_sound(row):
                    return False
                limit = row.get("timeout")
                seconds = float(limit) if isinstance(limit, (int, float)) and limit > 0 else DEFAULT_TIMEOUT_S
                blocks = row.get("onFailure") == "block"
                ids = row["hookCallbackIds"]
                found += [Hook(event, row.get("matcher") or "", callback, seconds, blocks) for callback in ids]
        self._hooks = found
        return True

    def submit(self, prompt: str, listen: Listen) -> tuple[str, Message] | None:
        """Ask whether a prompt may pass; if not, what the user is told, and the fields that explain it."""
        self._prompt_id = random_uuid()
        verdict = self.ask("UserPromptSubmit", listen, {"prompt": prompt})
        if verdict.is_late:
            limit = min(hook.timeout_s for hook in self._hooks if hook.event == "UserPromptSubmit")
            text = f"UserPromptSubmit hook callback timed out after {limit * 1000:g}ms"
            outcome: Message = {"kind": "no_verdict", "prompt_kept": False, "no_verdict_kind": "callback_timed_out"}
            return f"{_PROMPT_BLOCKED}{text}", {"prompt_submit_outcome": outcome}
        if verdict.decision == "deny":
            outcome = {"kind": "blocked_by_hook", "prompt_kept": False, "reason": verdict.reason}
            text = f"{_PROMPT_BLOCKED}{verdict.reason}\n\nOriginal prompt: {prompt}"
            return text, {"prompt_submit_outcome": outcome}
        if verdict.stop_reason is not None:
            outcome = {"kind": "stopped_by_hook", "prompt_kept": True, "reason": verdict.stop_reason}
            return f"Operation stopped by hook: {verdict.stop_reason}", {"prompt_submit_outcome": outcome}
        return None

    def stop(self, text: str, listen: Listen, *, is_repeated: bool) -> str | None:
        """Ask whether the turn may end with ``text``; if not, why."""
        fields = {"stop_hook_active": is_repeated, "last_assistant_message": text.strip()}
        verdict = self.ask("Stop", listen, {**fields, "background_tasks": [], "session_crons": []})
        if verdict.is_late:
            self._session.system("informational", content=_NO_STOP, level="notice")
            return None
        return verdict.reason if verdict.decision == "deny" else None

    def ask(self, event: str, listen: Listen, fields: Message, tool: str = "", call_id: str = "") -> Verdict:
        """Ask every hook of ``event`` that matches ``tool``, and wait for all of them.

        ``fields`` go into the hooks' input.  Raises what ``listen`` raises.
        """
        asked = [hook for hook in self._hooks if hook.event == event and hook.is_for(tool)]
        if not asked:
            return Verdict()
        given = {**self._common(event), **fields}
        questions, began = self._session.questions, time.monotonic()
        waiting: dict[str, Hook] = {}
        for hook in asked:
            request = {"subtype": "hook_callback", "callback_id": hook.callback_id, "input": given}
            waiting[questions.ask({**request, "tool_use_id": call_id or random_uuid()})] = hook
        if tool:
            self._session.tell_limits("allowed")
        verdicts = []
        while waiting:
            for request_id, hook in list(waiting.items()):
                left = began + hook.timeout_s - time.monotonic()
                answer = questions.answer(request_id)
                if answer is None and left > 0 and not self._session.is_at_end:
                    continue
                del waiting[request_id]
                questions.withdraw(request_id)
                verdicts.append(self._judge(hook, answer, tool))
            if waiting:
                listen(max(0.0, min(began + hook.timeout_s for hook in waiting.values()) - time.monotonic()), ())
        return _strongest(verdicts)

    def _judge(self, hook: Hook, answer: Message | None, tool: str) -> Verdict:
        """What one hook's answer amounts to; tells what goes wrong."""
        if answer is None:
            return Verdict("deny", _SILENT_TOOL, is_late=True)
        said = payload(answer)
        verdict = None if said is None else _read(hook.event, said)
        if said is None or verdict is None:
            return self._fail(hook)
        if isinstance(said.get("systemMessage"), str):
            name = f"{hook.event}:{tool}" if tool else hook.event
            self._session.system("informational", content=f"{name} says: {said['systemMessage']}", level="notice")
        return verdict

    def _fail(self, hook: Hook) -> Verdict:
        text = _FAILED.format(hook.callback_id)
        what = (
            'onFailure is "block", so this failure counts as a block.'
            if hook.blocks_on_failure
            else "Its answer was treated as empty."
        )
        fields = {"content": f"{hook.event}: {text} {what}", "level": "warning", "tag": "hook_callback_failed"}
        self._session.system("informational", **fields)
        return Verdict("deny", _BLOCKING + text) if hook.blocks_on_failure else Verdict()

    def _common(self, event: str) -> Message:
        session = self._session
        path = f"{project_dir(session.cwd)}/{session.session_id}.jsonl"
        effort = {} if event == "UserPromptSubmit" else {"effort": {"level": session.settings.effort}}
        return {
            "session_id": session.session_id,
            "transcript_path": path,
            "cwd": session.cwd,
            "prompt_id": self._prompt_id,
            "permission_mode": session.settings.mode,
            **effort,
            "hook_event_name": event,
        }


def _is_sound(row: Any) -> bool:
    ids = row.get("hookCallbackIds") if isinstance(row, dict) else None
    if not isinstance(ids, list) or not all(isinstance(one, str) for one in ids):
        return False
    return isinstance(row.get("matcher", ""), str)


def _read(event: str, said: Message) -> Verdict | None:
    """The verdict in an answer, None if the answer is invalid."""
    specific = said.get("hookSpecificOutput", {})
    if not isinstance(specific, dict) or (specific and specific.get("hookEventName") != event):
        return None
    decision = specific.get("permissionDecision")
    if decision is not None and decision not in _DECISIONS:
        return None
    if said.get("decision") not in (None, "approve", "block") or not isinstance(said.get("continue", True), bool):
        return None
    reason = specific.get("permissionDecisionReason") or said.get("reason") or ""
    decision = decision or {"approve": "allow", "block": "deny"}.get(said.get("decision", ""))
    updated = specific.get("updatedInput")
    stop = None if said.get("continue", True) else str(said.get("stopReason") or "")
    return Verdict(decision, str(reason), updated if isinstance(updated, dict) else None, stop)


def _strongest(verdicts: list[Verdict]) -> Verdict:
    """Deny beats ask beats allow; whoever stops the turn, stops it."""
    chosen = Verdict()
    for decision in _STRONGEST:
        matching = [verdict for verdict in verdicts if verdict.decision == decision]
        if matching:
            chosen = matching[0]
            break
    stops = [verdict.stop_reason for verdict in verdicts if verdict.stop_reason is not None]
    updated = [verdict.updated_input for verdict in verdicts if verdict.updated_input is not None]
    return chosen._replace(
        stop_reason=stops[0] if stops else None,
        updated_input=updated[-1] if updated else None,
        is_late=any(verdict.is_late for verdict in verdicts),
    )
