"""A subagent: the Task tool's second conversation, told beside the first one.

As with 2.1.329 it runs in the background unless the call or the environment says otherwise: then the turn goes on at
once, the agent speaks when the turn has ended, and its report begins a turn of the program's own.  Its text is told
only in the background or where it was asked for; it never streams.
Caller: ``simulator.tool_use``.
"""

import time
from collections.abc import Sequence
from typing import Any, Final

from simulator import directives, messages
from simulator.consent import Speaker
from simulator.directives import DirectiveError, Directives
from simulator.messages import Message
from simulator.output import encode
from simulator.reply import BASE_INPUT_TOKENS, CHARACTERS_PER_TOKEN, Stopped
from simulator.stream import Stream
from simulator.tasks import Task
from simulator.tools import ToolResult, failed
from simulator.usage import turn_usage

_STATISTICS: Final = (
    "readCount", "searchCount", "bashCount", "editFileCount", "linesAdded", "linesRemoved", "otherToolCount",
)  # fmt: skip
_LAUNCHED: Final = (
    "Async agent launched successfully. (This tool result is internal metadata — never quote or paste any part of it, "
    "including the agentId below, into a user-facing reply.)\nagentId: {}"
)


def launch(speaker: Speaker, given: Message, tool_use_id: str) -> ToolResult:
    """Run the call of the Task tool: to its end, or only its beginning."""
    session = speaker.session
    kind, prompt = str(given.get("subagent_type") or "general-purpose"), str(given.get("prompt", ""))
    names = [agent["name"] for agent in session.agents]
    if kind not in names:
        return failed(f"Agent type '{kind}' not found. Available agents: {', '.join(names)}")
    task = Task("local_agent", str(given.get("description", "")), tool_use_id, "")
    task.agent_type = kind
    is_background = given.get("run_in_background") is not False and not session.tasks.are_disabled and not speaker.agent
    agent = Subagent(speaker, task, prompt, is_background=is_background)
    session.tasks.add(task, is_backgrounded=is_background, spawn_depth=1, prompt=prompt)
    if is_background:
        session.tell_limits("allowed")
        session.tasks.waiting.append(agent.run_alone)
        text = _LAUNCHED.format(task.id)
        shown = {"isAsync": True, "status": "async_launched", "agentId": task.id, "description": task.description}
        shown |= {"prompt": prompt, "resolvedModel": session.settings.model}
        return ToolResult([{"type": "text", "text": text}], False, shown)
    return agent.run()


class Subagent:
    """Its side of the conversation.  Speaks like a turn, in the name of the call that launched it."""

    def __init__(self, speaker: Speaker, task: Task, prompt: str, *, is_background: bool) -> None:
        self.session = speaker.session
        self.denials: list[Message] = []
        self.agent: Message = {"agent_id": task.id, "agent_type": task.agent_type}
        self._speaker = speaker
        self._task = task
        self._prompt = prompt
        self._is_background = is_background
        self._marks: Message = {
            "parent_tool_use_id": task.tool_use_id, "agent_id": task.id, "subagent_type": task.agent_type,
            "task_description": task.description,
        }  # fmt: skip
        self._began = time.monotonic()
        self._uses = 0
        self._tokens = 0

    def listen(self, seconds: float | None, also: Sequence[int] = ()) -> list[int]:
        """Wait as the turn does, or, in the background, until the task is stopped."""
        if not self._is_background:
            return self._speaker.listen(seconds, also)
        ready = self.session.listen(seconds, also)
        if not self.session.tasks.is_running(self._task.id):
            raise Stopped
        return ready

    def tell(self, content: list[Message], **extra: Any) -> None:
        """Say a ``user`` line of this conversation."""
        shown = {key: value for key, value in extra.items() if key != "tool_use_result"}
        self.session.send({**messages.user(self.session.session_id, content, **shown), **self._marks})

    def run(self) -> ToolResult:
        """The whole conversation, in the turn's time; raises what its ``listen`` raises."""
        self.tell([{"type": "text", "text": self._prompt}])
        self.session.tell_limits("allowed")
        try:
            text = self._converse()
        except Stopped:
            self.session.tasks.end(self._task, "killed", self._task.description, is_backgrounded=False)
            raise
        usage = self._usage()
        self.session.tasks.end(self._task, "completed", self._task.description, is_backgrounded=False, usage=usage)
        about = f"agentId: {self._task.id} <usage>subagent_tokens: {self._tokens}</usage>"
        content = [{"type": "text", "text": text}, {"type": "text", "text": about}]
        return ToolResult(content, False, {**self._report(usage), "content": content[:1]})

    def _report(self, usage: Message) -> Message:
        """What the user interface is told of the whole."""
        names = {"prompt": self._prompt, "agentId": self._task.id, "agentType": self._task.agent_type}
        totals = {"totalDurationMs": usage["duration_ms"], "totalTokens": usage["total_tokens"]}
        return {
            "status": "completed", **names, **totals, "totalToolUseCount": usage["tool_uses"],
            "usage": turn_usage(self._tokens, 0), "toolStats": dict.fromkeys(_STATISTICS, 0),
            "resolvedModel": self.session.settings.model,
        }  # fmt: skip

    def run_alone(self) -> None:
        """The same between two turns."""
        try:
            text = self._converse()
        except Stopped:
            self.tell([{"type": "text", "text": messages.INTERRUPTED}])
            return
        self.session.tasks.end(self._task, "completed", text, is_backgrounded=True, usage=self._usage())

    def _converse(self) -> str:
        from simulator.tool_use import ToolUse  # noqa: PLC0415 - the two know each other

        wanted = Directives()
        try:
            wanted = directives.parse(self._prompt, self.session.turn_defaults)
        except DirectiveError as error:
            return str(error)
        while wanted.tool is not None and self._uses < wanted.tool_times:
            self._uses += 1
            self._wait(wanted.ttft_ms)
            name, given = wanted.tool[0], directives.tool_input(wanted.tool)
            block = self._say({"type": "tool_use", "id": "", "name": name, "input": given}, encode(given).decode())
            self.session.system(
                "task_progress", **self._task.names, tool_use_id=self._task.tool_use_id,
                description=f"Running {given.get('description', name)}", subagent_type=self._task.agent_type,
                usage=self._usage(), last_tool_name=name,
            )  # fmt: skip
            if not ToolUse(self, block).run():
                raise Stopped
        self._wait(wanted.ttft_ms)
        text = "".join(directives.reply_pieces(self._prompt, wanted, 0))
        self._say({"type": "text", "text": ""}, text)
        return text

    def _wait(self, milliseconds: float) -> None:
        end = time.monotonic() + milliseconds / 1000
        self.listen(0)
        while (left := end - time.monotonic()) > 0:
            self.listen(left)

    def _say(self, block: Message, text: str) -> Message:
        """One finished block of an API message; returns it as the model has said it."""
        session = self.session
        tokens = BASE_INPUT_TOKENS + len(self._prompt) // CHARACTERS_PER_TOKEN
        stream = Stream(session.output, session.session_id, session.settings.model, tokens, partial=False)
        if block["type"] == "tool_use":
            block = {**block, "id": f"toolu_{stream.message_id[4:]}"}
            stream.open({**block, "input": {}})
            stream.delta("input_json_delta", "partial_json", text)
        else:
            stream.open(block)
            stream.delta("text_delta", "text", text)
        session.usage.add(session.settings.model, tokens, max(1, stream.output_tokens), beside=True)
        self._tokens += tokens + max(1, stream.output_tokens)
        line = messages.assistant(session.session_id, stream.finished_block(), stream.request_id, [])
        if block["type"] == "tool_use" or self._is_background or session.shows_subagents:
            session.send({**line, **self._marks})
        return block

    def _usage(self) -> Message:
        spent = round((time.monotonic() - self._began) * 1000)
        return {"total_tokens": self._tokens, "tool_uses": self._uses, "duration_ms": spent}
