"""One API message as ``stream_event`` lines, and the ``assistant`` line that each finished block becomes.

The lines of deltas are put together from a template: encoding a dictionary for each would cost five times as much.
A burst writes them many at a time.  Owner and caller: ``simulator.turn``.
"""

import itertools
import json
from collections.abc import Iterable, Iterator
from typing import Any, Final

from simulator.ids import PREFIX, new_id, new_uuid, uuid_block
from simulator.messages import Message
from simulator.output import Output, encode
from simulator.usage import request_usage

BURST_LINES: Final = 256
_quote: Final = json.JSONEncoder(ensure_ascii=False).encode


class Stream:
    """The stream of one API message; silent where partial messages were not asked for.

    The caller paces it: every method writes at once and returns.
    """

    def __init__(self, output: Output, session_id: str, model: str, input_tokens: int, *, partial: bool) -> None:
        self.message_id = new_id("msg_")
        self.request_id = new_id("req_")
        self.input_tokens = input_tokens
        self.output_tokens = 0
        self.block: Message | None = None
        """The block that is open, as far as it was said."""
        self._output = output
        self._session_id = session_id
        self._model = model
        self._partial = partial
        self._index = -1
        self._pieces: list[str] = []
        self._around: tuple[str, str] | None = None
        """What stands before and behind the text in every delta of the open block."""
        self._end = f'","api_message_id":"{self.message_id}"}}'

    def start(self, uuids: list[str], first_token_ms: int) -> None:
        """``message_start``."""
        message = {**self._message([]), "usage": request_usage(self.input_tokens, 1)}
        del message["context_management"]
        extra: Message = {"ttft_ms": first_token_ms, "thinking_display": "updates"}
        if uuids:
            extra |= {"user_message_uuid": uuids[-1], "user_message_uuids": uuids}
        self._event({"type": "message_start", "message": message}, **extra)

    def open(self, block: Message) -> None:
        """``content_block_start`` of an empty block."""
        self._index += 1
        self.block, self._pieces, self._around = block, [], None
        self._event({"type": "content_block_start", "index": self._index, "content_block": block})

    def delta(self, kind: str, field: str, text: str) -> None:
        """One ``content_block_delta`` of the open block."""
        self.output_tokens += 1
        self._pieces.append(text)
        if self._partial:
            head, tail = self._around or self._template(kind, field)
            self._output.line(f"{head}{_quote(text)}{tail}{new_uuid()}{self._end}".encode(errors="backslashreplace"))

    def burst(self, pieces: Iterable[str]) -> Iterator[None]:
        """Text deltas, prepared and written many lines at a time; yields after each write, for a look at stdin."""
        head, tail = self._template("text_delta", "text")
        tail, end = tail + PREFIX, self._end
        rest = iter(pieces)
        while batch := list(itertools.islice(rest, BURST_LINES)):
            first = uuid_block(len(batch))
            self._pieces += batch
            self.output_tokens += len(batch)
            if self._partial:
                lines = [f"{head}{_quote(text)}{tail}{first + n:012x}{end}" for n, text in enumerate(batch)]
                self._output.lines([line.encode(errors="backslashreplace") for line in lines])
            yield

    def around_text(self) -> tuple[str, str]:
        """What stands before the text of a delta of the open block, and between it and the line's uuid."""
        head, tail = self._template("text_delta", "text")
        return f'{head}"', f'"{tail}'

    def signature(self) -> None:
        """The end of a thinking block."""
        delta = {"type": "signature_delta", "signature": f"simulated-{self.message_id}"}
        self._event({"type": "content_block_delta", "index": self._index, "delta": delta})

    def finished_block(self) -> Message:
        """The API message of the open block, as an ``assistant`` line carries it."""
        block, text = dict(self.block or {}), "".join(self._pieces)
        if block["type"] == "text":
            block["text"] = text
        elif block["type"] == "thinking":
            block |= {"thinking": text, "signature": f"simulated-{self.message_id}"}
        else:
            block["input"] = json.loads(text)
        return self._message([block])

    def close(self) -> None:
        """``content_block_stop`` of the open block; the real program writes it behind the ``assistant`` line."""
        self.block = None
        self._event({"type": "content_block_stop", "index": self._index})

    def stop(self, reason: str) -> None:
        """``message_delta`` and ``message_stop``."""
        self._message_delta(reason)
        self._event({"type": "message_stop"})

    def abandon(self, *, kept: bool, tells_delta: bool) -> None:
        """The end of a message that was cut off.

        ``kept``: the open block became an ``assistant`` line.  ``tells_delta``: an interrupt says ``message_delta``, a
        lost connection does not.
        """
        if self.block is not None and self.block["type"] != "tool_use":
            self.close()
        if tells_delta:
            self._message_delta(None)
        rest = {"api_message_id": self.message_id, "from_block_index": self._index + 1 if kept else max(0, self._index)}
        self._event({"type": "message_stop"}, abandoned_blocks=rest)

    @property
    def said(self) -> str:
        """What the open block holds so far."""
        return "".join(self._pieces)

    def _message(self, content: list[Message]) -> Message:
        return {
            "id": self.message_id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": content,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": request_usage(self.input_tokens, max(1, self.output_tokens)),
            "context_management": None,
        }

    def _message_delta(self, reason: str | None) -> None:
        delta = {"stop_reason": reason, "stop_sequence": None}
        usage = request_usage(self.input_tokens, max(1, self.output_tokens))
        self._event({"type": "message_delta", "delta": delta, "usage": usage})

    def _template(self, kind: str, field: str) -> tuple[str, str]:
        head = {"type": "content_block_delta", "index": self._index, "delta": {"type": kind, field: ""}}
        line = encode({"type": "stream_event", "event": head}).decode().removesuffix('""}}}')
        self._around = line, f'}}}},"session_id":"{self._session_id}","parent_tool_use_id":null,"uuid":"'
        return self._around

    def _event(self, event: dict[str, Any], **extra: Any) -> None:
        if not self._partial:
            return
        line = {"type": "stream_event", "event": event, "session_id": self._session_id, "parent_tool_use_id": None}
        self._output.send({**line, "uuid": new_uuid(), **extra, "api_message_id": self.message_id})


def thoughts() -> Iterator[str]:
    """What is thought before every reply that asks for thinking."""
    return iter(("Let me think", " about this", " for a moment."))
