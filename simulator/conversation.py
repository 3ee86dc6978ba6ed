"""The model's side of a turn: requests, replies, tool calls, and the limits that end it.

Owner and caller: ``simulator.turn``.
"""

import time
from typing import TYPE_CHECKING, Any

from simulator import attempts, directives, messages, refusals, structured
from simulator.directives import DirectiveError, Directives
from simulator.messages import Message, Outcome
from simulator.output import encode
from simulator.refusals import Refusal
from simulator.reply import CutOff, Reply, Stopped
from simulator.tool_use import ToolUse

if TYPE_CHECKING:
    from simulator.turn import Turn


class Conversation:
    """What is said between ``system/init`` and the turn's outcome."""

    def __init__(self, turn: "Turn", text: str, *, is_repeated: bool = False) -> None:
        self._turn = turn
        self._session = turn.session
        self._text = text
        self._wanted = Directives()
        """What the text asks for; the turn has what of it concerns the model that answers."""
        self._problem: str | None = None
        """Why that cannot be read."""
        self._earlier = 0
        """How many messages the user said before the one that is answered."""
        self._calls = 0
        """Tool calls since that message."""
        self._requests = 0
        self._was_reminded = False
        self._stops = 0
        """How often a hook has made the model go on."""
        self._is_repeated = is_repeated
        """The text was answered before, its tool calls are done."""

    def read(self) -> None:
        """Take in what the text asks for."""
        self._calls, self._problem = 0, None
        try:
            self._wanted = directives.parse(self._text, self._session.turn_defaults)
        except DirectiveError as error:
            self._problem = str(error)
        if self._is_repeated:
            self._wanted = self._wanted._replace(tool=None)
        self._turn.directives = self._wanted

    def run(self, earlier: int) -> Outcome:
        """Requests, until the turn has an outcome.  ``earlier``: how many messages the user had said before."""
        self._earlier = earlier
        outcome = None
        while outcome is None:
            self._request()
            outcome = self._spent(None) or self._round()
        return outcome

    def _request(self) -> None:
        """A request to the API is about to go out."""
        fields = {"user_message_uuids": self._turn.uuids} if self._turn.uuids else {}
        self._session.system("status", status="requesting", **fields)

    def _round(self) -> Outcome | None:
        """One request and what follows from its reply; None if another one is due."""
        self._session.debug.line("api request", "/v1/messages source=sdk")
        try:
            found = attempts.find_model(self._turn, self._wanted, self._problem)
        except Stopped:
            return self._interrupted(Reply(self._turn))
        if isinstance(found, Refusal):
            return self._refused(found)
        self._requests += 1
        self._turn.model, self._turn.directives = found, directives.for_model(self._wanted, found)
        if self._wanted.tool is not None and self._calls < self._wanted.tool_times:
            self._calls += 1
            name, given = self._wanted.tool[0], directives.tool_input(self._wanted.tool)
            return self._tool_round(name, given)
        reply = Reply(self._turn)
        try:
            text = reply.say(directives.reply_pieces(self._text, self._wanted, self._earlier))
        except Stopped:
            return self._interrupted(reply)
        except CutOff:
            reply.abandon(tells_delta=False)
            return self._refused(refusals.LOST)
        if (spent := self._spent("end_turn")) is not None:
            return spent
        if self._session.settings.schema is not None and not self._was_reminded:
            self._remind()
            return None
        self._session.tell_limits("allowed")
        return None if self._is_sent_on(text) else Outcome(text=text, turns=self._requests)

    def _is_sent_on(self, text: str) -> bool:
        """Ask the hooks whether the turn may end; if not, what they say is the next text to answer."""
        feedback = self._session.hooks.stop(text, self._turn.listen, is_repeated=self._stops > 0)
        if feedback is None:
            return False
        self._stops += 1
        self._earlier = self._session.transcript.earlier
        self._text = f"Stop hook feedback:\n{feedback}"
        self._turn.tell([{"type": "text", "text": self._text}], isSynthetic=True)
        notice = {"key": "stop-hook-error", "text": "stop hook problem · ctrl+o to see", "priority": "immediate"}
        self._session.system("notification", **notice)
        self.read()
        return True

    def _tool_round(self, name: str, given: Message) -> Outcome | None:
        """A tool call and its result; the outcome if the turn ends with it."""
        reply = Reply(self._turn)
        try:
            block = reply.call(name, given)
        except Stopped:
            return self._interrupted(reply)
        if (spent := self._spent("tool_use")) is not None:
            ToolUse(self._turn, block).give_up()
            return spent
        if name == structured.TOOL and self._session.settings.schema is not None:
            if (outcome := self._provide(block, self._session.settings.schema)) is not None:
                return outcome
        elif (outcome := self._use(block)) is not None:
            return outcome
        if self._turn.is_preempted:
            return Outcome(stop_reason="tool_use", terminal_reason="aborted_tools", turns=self._requests + 1)
        turns, limit = self._requests + 1, self._session.flags.max_turns
        if limit and turns > limit:
            text = f"Reached maximum number of turns ({limit:g})"
            return Outcome(
                "error_max_turns", is_error=True, stop_reason="tool_use", terminal_reason="max_turns", turns=turns,
                error=text,
            )  # fmt: skip
        self._fold()
        return None

    def _use(self, block: Message) -> Outcome | None:
        use = ToolUse(self._turn, block)
        self._turn.is_at_tool = True
        try:
            if use.run():
                ended = Outcome(stop_reason="tool_use", terminal_reason="hook_stopped", turns=self._requests + 1)
                return ended if use.is_ended_by_hook else None
        except Stopped:
            use.stop()
        finally:
            self._turn.is_at_tool = False
        self._turn.tell([{"type": "text", "text": messages.INTERRUPTED_TOOL}])
        return _ended("aborted_tools", "tool_use", turns=self._requests + 2, counted=True)

    def _provide(self, block: Message, schema: Message) -> Outcome | None:
        """Structured output: the turn ends with it if it fits."""
        given, tool_id = block["input"], block["id"]
        wrong = structured.mismatch(schema, given)
        if wrong is not None:
            result = {"type": "tool_result", "content": wrong, "is_error": True, "tool_use_id": tool_id}
            self._turn.tell([result], tool_use_result=f"Error: {wrong}")
            return None
        result = {"tool_use_id": tool_id, "type": "tool_result", "content": structured.PROVIDED}
        decision = {"decision": "accept", "source": "config"}
        meta = [{"id": tool_id, "permission_decision": decision}]
        self._turn.tell([result], tool_use_result=structured.PROVIDED, tool_result_meta=meta)
        self._session.tell_limits("allowed")
        return Outcome(text=encode(given).decode(), stop_reason="tool_use", turns=self._requests + 1, structured=given)

    def _remind(self) -> None:
        """Tell the model, once, that it has to call the tool; what it says then is the answer, if it does not."""
        self._was_reminded = True
        self._earlier = self._session.transcript.earlier
        self._turn.tell([{"type": "text", "text": structured.ENFORCE}], isSynthetic=True)
        self._text = structured.ENFORCE
        self.read()

    def _fold(self) -> None:
        """Messages that came during the tool call join this turn, whose reply and one result are then theirs, too."""
        folded = self._session.inbox.take_joining()
        if folded:
            self._is_repeated = False
            self._earlier = self._session.transcript.earlier
            self._text = folded[0].text
            self.read()
        for message in folded:
            self._session.replay(message.content, message.uuid)
            self._session.checkpoints.begin(message.uuid)
            self._session.lifecycle(message.uuid, "started")
            entry = {"role": "user", "content": message.content}
            self._session.transcript.user(entry, message.uuid, time.monotonic())
            self._turn.uuids += [message.uuid] if message.uuid else []

    def _spent(self, stop_reason: str | None) -> Outcome | None:
        """The outcome of a turn in a process that has spent its budget."""
        budget = self._session.flags.max_budget_usd
        if budget is None or self._session.usage.spent_usd < budget:
            return None
        return Outcome(
            "error_max_budget_usd", is_error=True, stop_reason=stop_reason, terminal_reason="budget_exhausted",
            turns=max(1, self._requests), error=f"Reached maximum budget (${budget:g})",
        )  # fmt: skip

    def _refused(self, refusal: Refusal) -> Outcome:
        session = self._session
        if refusal.status == 401:
            retry = {"attempt": 0, "max_retries": 0, "retry_delay_ms": 0, "error_status": 401, "error": refusal.kind}
            session.system("api_retry", **retry)
            session.system("api_retry", **retry)
        elif refusal.status == 429:
            session.tell_limits("rejected")
        line = messages.api_error(session.session_id, refusal, self._turn.uuids)
        session.transcript.assistant(line["message"], line["uuid"])
        session.send(line)
        return Outcome(
            text=refusal.text, is_error=True, stop_reason="stop_sequence", terminal_reason="api_error",
            status=refusal.status, error_type=refusal.error_type, turns=max(1, self._requests),
        )  # fmt: skip

    def _interrupted(self, reply: Reply) -> Outcome:
        """An interrupt came while the model spoke, or before it did."""
        if self._turn.is_preempted:
            reply.abandon(tells_delta=True)
            if reply.said:
                return Outcome(
                    text=reply.said, stop_reason=None, terminal_reason="aborted_streaming", turns=max(1, self._requests)
                )
            return _ended("aborted_streaming", None, turns=max(1, self._requests), counted=False)
        reply.abandon(tells_delta=True, text=messages.INTERRUPTED)
        return _ended("aborted_streaming", None, turns=2, counted=False)


def _ended(why: str, stop_reason: str | None, *, turns: int, counted: bool) -> Outcome:
    """The outcome of a turn that was stopped."""
    reason: Any = "null" if stop_reason is None else stop_reason
    text = f"[ede_diagnostic] result_type=user last_content_type=n/a stop_reason={reason}"
    return Outcome(
        "error_during_execution", is_error=True, stop_reason=stop_reason, terminal_reason=why, turns=turns, error=text,
        counted=counted,
    )  # fmt: skip
