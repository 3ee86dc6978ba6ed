"""One API message of a turn: thoughts, then text or a tool call, at the pace that was asked for.

The ``assistant`` line comes before the ``content_block_stop`` of its block, as with the real program.
Owner and caller: ``simulator.conversation``.
"""

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from simulator import faults, floods, messages, pour
from simulator.messages import Message
from simulator.output import encode
from simulator.pour import Pour
from simulator.stream import Stream, thoughts

if TYPE_CHECKING:
    from simulator.turn import Turn

BASE_INPUT_TOKENS: Final = 100
CHARACTERS_PER_TOKEN: Final = 4


class Stopped(Exception):
    """The turn was interrupted at a wait."""


class CutOff(Exception):
    """The API's stream broke off."""


class Reply:
    """The model's side of one request.  Raises what ``Turn.pause`` raises, and ``CutOff``; then call ``abandon``."""

    def __init__(self, turn: "Turn") -> None:
        session = turn.session
        self._turn = turn
        self._session = session
        self._wanted = turn.directives
        self._model = turn.model
        self._requested = time.monotonic()
        self._has_started = False
        self._has_text = False
        tokens = BASE_INPUT_TOKENS + session.transcript.characters // CHARACTERS_PER_TOKEN
        self._stream = Stream(session.output, session.session_id, self._model, tokens, partial=session.flags.partial)

    def say(self, pieces: Iterable[str]) -> str:
        """A text; returns it whole."""
        self._begin()
        stream, wanted = self._stream, self._wanted
        self._has_text = True
        stream.open({"type": "text", "text": ""})
        faults.before_first_delta(wanted, self._session.output)
        floods.run(wanted, self._session.output, self._turn.pause)
        if wanted.endless:
            faults.hang()
        if wanted.pour is not None:
            self._pour(Pour(*wanted.pour))
        if wanted.burst and wanted.cut_after is wanted.die_after is wanted.hang is None:
            self._turn.mark_first_token()
            for _ in stream.burst(pieces):
                self._turn.pause(0)
        else:
            self._say_one_by_one(pieces)
        if wanted.cut_after is not None:
            raise CutOff
        text = stream.said
        self._end_block()
        self._end("end_turn")
        return text

    def call(self, name: str, given: Message) -> Message:
        """A tool call; returns its ``tool_use`` block."""
        self._begin()
        stream = self._stream
        block: Message = {"type": "tool_use", "id": f"toolu_{stream.message_id[4:]}", "name": name, "input": given}
        stream.open({**block, "input": {}})
        text = encode(given).decode()
        for part in (text[: len(text) // 2], text[len(text) // 2 :]):
            stream.delta("input_json_delta", "partial_json", part)
            self._turn.mark_first_token()
            self._pace()
        self._end_block()
        self._end("tool_use")
        return block

    def abandon(self, *, tells_delta: bool, text: str | None = None) -> None:
        """The end of a message that was cut off.

        After an interrupt the part of a text that was said is kept as an aborted ``assistant`` line, and ``text`` is
        what the CLI says in the user's name before the stream's end.
        """
        stream = self._stream
        kept = bool(tells_delta and stream.block is not None and stream.block["type"] == "text" and stream.said)
        if kept:
            self._say_block(aborted=True)
        if text is not None:
            self._turn.tell([{"type": "text", "text": text}])
        if self._has_started:
            stream.abandon(kept=kept, tells_delta=tells_delta)
            self._account()

    @property
    def said(self) -> str:
        """The text so far, of a message that was cut off."""
        return self._stream.said if self._has_text else ""

    def _begin(self) -> None:
        turn, stream = self._turn, self._stream
        turn.pause(self._wanted.ttft_ms / 1000)
        self._has_started = True
        self._session.usage.add(self._model, stream.input_tokens, 0)
        stream.start(turn.unmarked, round((time.monotonic() - self._requested) * 1000))
        if not self._wanted.thinking:
            return
        stream.open({"type": "thinking", "thinking": "", "signature": ""})
        estimate = 0
        for text in thoughts():
            step = len(text) // 4
            estimate += step
            marks = {"user_message_uuid": turn.uuids[-1]} if turn.uuids else {}
            fields = {"estimated_tokens": estimate, "estimated_tokens_delta": step, **marks}
            self._session.system("thinking_tokens", **fields)
            stream.delta("thinking_delta", "thinking", text)
            turn.mark_first_token()
            self._pace()
        stream.signature()
        self._end_block()

    def _pour(self, wanted: Pour) -> None:
        session, turn = self._session, self._turn
        turn.mark_first_token()
        if session.flags.partial:
            pour.run(wanted, self._stream.around_text(), session.output, turn.pause, lambda: session.is_at_end)

    def _say_one_by_one(self, pieces: Iterable[str]) -> None:
        wanted, turn = self._wanted, self._turn
        for said, piece in enumerate(pieces):
            if wanted.cut_after is not None and said >= wanted.cut_after:
                raise CutOff
            self._stream.delta("text_delta", "text", piece)
            turn.mark_first_token()
            faults.after_delta(wanted, said + 1)
            self._pace()

    def _end_block(self) -> None:
        self._say_block()
        self._stream.close()

    def _say_block(self, **extra: Any) -> None:
        session, stream, turn = self._session, self._stream, self._turn
        block = stream.finished_block()
        said = block["content"][0]
        if said["type"] == "tool_use" and said["name"].startswith("mcp__"):
            title = session.servers.title_of(said["name"])
            extra["tool_use_meta"] = [{"id": said["id"], **title}]
        line = messages.assistant(session.session_id, block, stream.request_id, turn.unmarked, **extra)
        turn.unmarked = []
        session.transcript.assistant(line["message"], line["uuid"])
        session.send(line)

    def _end(self, reason: str) -> None:
        self._stream.stop(reason)
        self._account()

    def _account(self) -> None:
        self._session.usage.add(self._model, 0, max(1, self._stream.output_tokens))
        self._turn.api_s += time.monotonic() - self._requested

    def _pace(self) -> None:
        self._turn.pause(self._wanted.itl_ms / 1000)
