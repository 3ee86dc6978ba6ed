"""What the stand-in for the Messages API answers to a request body: a refusal, or a reply and its stream of events.

Pure: no socket, no clock; the ids come from ``secrets`` because the CLI merges two replies that share a message id.

The user's text is **not** simply the last message.  The CLI lets attachments (``<system-reminder>`` blocks) and
messages with the role ``system`` follow it, and after a tool call the last message holds the ``tool_result``.  So all
blocks are read in order: the last one that a person can have written is the user's text, and a ``tool_result`` behind
it means that one of the calls which its directive asked for is done.

Callers: ``simulator.api_exchange``, ``simulator.api_record``.  Source of shapes: the Messages API as the CLI reads it.
"""

import json
import re
import secrets
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from simulator import directives
from simulator.directives import OPENING, DirectiveError, Directives

ALIASES: Final = frozenset({"sonnet", "opus", "haiku", "fable", "default", "best", "opusplan"})
MODELS: Final = ("claude-opus-5-5", "claude-sonnet-5-5", "claude-haiku-5-5")
_KINDS: Final = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    413: "request_too_large", 429: "rate_limit_error", 500: "api_error", 529: "overloaded_error",
}  # fmt: skip
_MESSAGES: Final = {
    401: "invalid credential",
    429: "Number of requests has exceeded your rate limit",
    529: "Overloaded",
}
_NOT_WRITTEN_BY_A_PERSON: Final = re.compile(r"\s*(<[a-z][a-z-]*>|\[Request interrupted by user|\[Image: source: )")
_SENT_IN_MID_TURN: Final = re.compile(
    r"The user sent a new message while you were working:\n(.*?)(?:\n\n(?:IMPORTANT: After|This is how)|\Z)", re.DOTALL
)
_PIECES_OF_INPUT: Final = 2
_THOUGHTS: Final = ("Let me think", " about this", " for a moment.")


class Refusal(NamedTuple):
    """An error answer."""

    status: int
    message: str

    def body(self, request_id: str) -> dict[str, Any]:
        """The Messages API's error shape."""
        kind = _KINDS.get(self.status, "api_error" if self.status >= 500 else "invalid_request_error")
        return {"type": "error", "error": {"type": kind, "message": self.message}, "request_id": request_id}


class Reply(NamedTuple):
    """One assistant message to be: its pace, what it thinks, and then either what it says or the tool it calls."""

    directives: Directives
    message_id: str
    model: str
    thoughts: tuple[str, ...]
    pieces: tuple[str, ...]
    tool: tuple[str, dict[str, Any]] | None
    max_tokens: int
    input_tokens: int

    @property
    def output_tokens(self) -> int:
        return max(1, len(self.pieces) + len(self.thoughts) + (20 if self.tool else 0))

    @property
    def stop_reason(self) -> str:
        return "tool_use" if self.tool else "end_turn"


class Event(NamedTuple):
    """One server-sent event; ``counts`` marks the text deltas that ``cut_after`` counts, ``waits`` every delta."""

    kind: str
    data: dict[str, Any]
    waits: bool = False
    counts: bool = False


class Conversation(NamedTuple):
    """A request's messages, read as the stand-in understands them."""

    texts: tuple[str, ...]
    """Everything that people wrote, in order; the last is the one to answer."""
    tool_results: int
    """How many of them stand behind the last text."""


def refuse_model(model: object) -> Refusal | None:
    """The refusal of a model name that does not exist here: the real API answers 404, not 400."""
    if isinstance(model, str) and "unknown" not in model and (model.startswith("claude-") or model in ALIASES):
        return None
    return Refusal(404, f"model: {model}")


def refuse_status(status: int) -> Refusal:
    """The refusal that an ``error=`` directive asks for."""
    return Refusal(status, _MESSAGES.get(status, f"simulated error {status}"))


def plan(body: Mapping[str, Any]) -> Reply | Refusal:
    """What to answer to ``POST /v1/messages``; a body that the real API would refuse is refused alike (400, 404)."""
    model, messages, limit = body.get("model"), body.get("messages"), body.get("max_tokens")
    refusal = refuse_model(model)
    if refusal is not None:
        return refusal
    if not isinstance(messages, list) or not messages:
        return Refusal(400, "messages: at least one message is required")
    if not isinstance(limit, int) or limit < 1:
        return Refusal(400, "max_tokens: Field required")
    conversation = read(messages)
    text = conversation.texts[-1] if conversation.texts else ""
    try:
        found = directives.for_model(directives.parse(text), str(model))
        if found.error is not None:
            return refuse_status(found.error)
        asked = found.tool if conversation.tool_results < found.tool_times else None
        tool = None if asked is None else (asked[0], directives.tool_input(asked))
    except DirectiveError as error:
        return Refusal(400, str(error))
    earlier = max(0, len(conversation.texts) - 1)
    pieces = () if tool else tuple(directives.reply_pieces(text, found, earlier))
    thoughts = _THOUGHTS if found.thinking else ()
    return Reply(found, unique("msg_"), str(model), thoughts, pieces[:limit], tool, limit, count_tokens(body))


def read(messages: list[Any]) -> Conversation:
    """Find what people wrote, and how often a tool answered since."""
    texts: list[str] = []
    results = 0
    for message in messages:
        role = message.get("role") if isinstance(message, dict) else None
        for block in _blocks(message.get("content")) if role in ("user", "system") else ():
            if block.get("type") == "tool_result":
                results += 1
            elif (text := _written(role, block.get("text"))) is not None:
                texts.append(text)
                results = 0
    return Conversation(tuple(texts), results)


def _written(role: object, text: object) -> str | None:
    """What a person wrote in this block, or None: a message sent in mid-turn comes inside one with the system role."""
    if not isinstance(text, str) or not text:
        return None
    if role == "system":
        folded = _SENT_IN_MID_TURN.match(text)
        return folded.group(1) if folded else None
    return text if OPENING in text or _NOT_WRITTEN_BY_A_PERSON.match(text) is None else None


def _blocks(content: object) -> list[dict[str, Any]]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [block for block in content if isinstance(block, dict)] if isinstance(content, list) else []


def system_text(system: object) -> str:
    """The system prompt as one text, from its string or block form."""
    return "\n".join(str(block.get("text", "")) for block in _blocks(system))


def count_tokens(body: Mapping[str, Any]) -> int:
    """A rough but steady count: what matters is that a longer conversation counts more."""
    counted = {name: body[name] for name in ("system", "messages", "tools") if name in body}
    return max(1, len(json.dumps(counted, ensure_ascii=False)) // 4)


def unique(prefix: str) -> str:
    return prefix + secrets.token_hex(12)


def message(reply: Reply) -> dict[str, Any]:
    """The whole assistant message, as a request without ``stream`` gets it."""
    blocks: list[dict[str, Any]] = []
    if reply.thoughts:
        blocks.append({"type": "thinking", "thinking": "".join(reply.thoughts), "signature": _signature(reply)})
    if reply.tool:
        blocks.append({"type": "tool_use", "id": unique("toolu_"), "name": reply.tool[0], "input": reply.tool[1]})
    else:
        blocks.append({"type": "text", "text": "".join(reply.pieces)})
    usage = _usage(reply, reply.output_tokens)
    return {**_opening(reply), "content": blocks, "stop_reason": reply.stop_reason, "usage": usage}


def events(reply: Reply) -> Iterator[Event]:
    """The same message as the events of a stream, one text delta per piece."""
    yield Event("message_start", {"type": "message_start", "message": _opening(reply)})
    index = 0
    if reply.thoughts:
        yield _start(index, {"type": "thinking", "thinking": "", "signature": ""})
        for thought in reply.thoughts:
            yield _delta(index, {"type": "thinking_delta", "thinking": thought})
        yield _delta(index, {"type": "signature_delta", "signature": _signature(reply)})._replace(waits=False)
        yield _stop(index)
        index += 1
    if reply.tool:
        yield _start(index, {"type": "tool_use", "id": unique("toolu_"), "name": reply.tool[0], "input": {}})
        for part in _halves(json.dumps(reply.tool[1], ensure_ascii=False)):
            yield _delta(index, {"type": "input_json_delta", "partial_json": part})
    else:
        yield _start(index, {"type": "text", "text": ""})
        for piece in reply.pieces:
            yield _delta(index, {"type": "text_delta", "text": piece})._replace(counts=True)
    yield _stop(index)
    ending = {"stop_reason": reply.stop_reason, "stop_sequence": None}
    usage = _usage(reply, reply.output_tokens)
    yield Event("message_delta", {"type": "message_delta", "delta": ending, "usage": usage})
    yield Event("message_stop", {"type": "message_stop"})


def _opening(reply: Reply) -> dict[str, Any]:
    return {
        "id": reply.message_id, "type": "message", "role": "assistant", "model": reply.model, "content": [],
        "stop_reason": None, "stop_sequence": None, "usage": _usage(reply, 1),
    }  # fmt: skip


def _usage(reply: Reply, output_tokens: int) -> dict[str, Any]:
    return {
        "input_tokens": reply.input_tokens, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0,
        "output_tokens": output_tokens, "service_tier": "standard",
    }  # fmt: skip


def _signature(reply: Reply) -> str:
    return f"simulated-{reply.message_id}"


def _halves(text: str) -> Iterator[str]:
    size = -(-len(text) // _PIECES_OF_INPUT)
    return (text[start : start + size] for start in range(0, len(text), size))


def _start(index: int, block: dict[str, Any]) -> Event:
    return Event("content_block_start", {"type": "content_block_start", "index": index, "content_block": block})


def _delta(index: int, delta: dict[str, Any]) -> Event:
    return Event("content_block_delta", {"type": "content_block_delta", "index": index, "delta": delta}, waits=True)


def _stop(index: int) -> Event:
    return Event("content_block_stop", {"type": "content_block_stop", "index": index})
