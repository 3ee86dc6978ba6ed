"""A conversation's transcript, as the CLI keeps it, to the frames of ``broker.history``.

Pure.  Caller: ``broker.sessions.transcript``, which reads the lines, newest first.  The form of the lines was measured
on Claude Code 2.1.197 and 2.1.329: each is one JSON object with a ``type``; ``user`` and ``assistant`` are what was
said, in the order in which it was said, whatever the chain of ``parentUuid`` looks like after a compaction or a kill.
A user's message that the CLI took in during a turn lies there as an ``attachment``.  Everything else is the CLI's own
business.

Left out: subagents (sidechains), what the CLI wrote in the user's name (summaries, reminders, notices of background
tasks, traces of its commands), and the answer that it invents when a killed turn is taken up again.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from protocol.cli import repair
from protocol.controls import DECODE_ERRORS

PAGE_BYTES = 4 * 2**20
"""Most bytes of a page; a single frame may be larger."""
INVENTED_MODEL = "<synthetic>"
"""Who wrote an answer that came from no model: an API error, or the CLI's filler behind a killed turn."""
COMMAND_TRACES = ("<command-", "<local-command-")
INTERRUPTED = "[Request interrupted by user"


class _Origin(Struct, frozen=True):
    kind: str = ""


class _Attachment(Struct, frozen=True):
    type: str = ""
    prompt: Raw | UnsetType = UNSET
    source_uuid: str | None = None
    commandMode: str | None = None


class _Message(Struct, frozen=True):
    content: Any = None
    model: str | None = None


class _Entry(Struct, frozen=True):
    """The fields of a transcript's line that matter here; the rest is skipped, not decoded."""

    type: str = ""
    uuid: str = ""
    sessionId: str = ""
    timestamp: str = ""
    isSidechain: bool | None = False
    isMeta: bool | None = False
    isCompactSummary: bool | None = False
    isVisibleInTranscriptOnly: bool | None = False
    isApiErrorMessage: bool | None = False
    promptSource: str | None = None
    origin: _Origin | None = None
    message: Raw | UnsetType = UNSET
    attachment: _Attachment | None = None


class _Frame(Struct, frozen=True):
    """A frame in the shape of the CLI's stdout, with nothing of the transcript beyond it."""

    type: str
    message: Raw
    uuid: str
    session_id: str
    timestamp: str
    parent_tool_use_id: None = None


class _UserMessage(Struct, frozen=True):
    content: Raw
    role: str = "user"


_entry = msgspec.json.Decoder(_Entry)
_message = msgspec.json.Decoder(_Message)
_encoder = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True)
class Said:
    """One frame of the conversation, by ``user`` or ``assistant``.  ``is_answered``: nothing more has to follow."""

    uuid: str
    by: str
    frame: bytes
    is_answered: bool


@dataclass(frozen=True, slots=True)
class Page:
    """Frames, oldest first; ``more``: there are older ones.  ``found``: whether ``before`` was met."""

    frames: list[bytes]
    more: bool
    found: bool
    is_answered: bool
    """Something was said, and the newest frame is not a user's that waits for its answer."""


def said(line: bytes) -> Said | None:
    """What a line of the transcript says, or None: torn, of another kind, or not said by user or model."""
    entry = _decoded(line)
    if entry is None or not entry.uuid or entry.isSidechain:
        return None
    if entry.type == "attachment":
        return _taken_in(entry)
    if entry.type not in ("user", "assistant") or not isinstance(entry.message, Raw):
        return None
    if entry.isMeta or entry.isCompactSummary or entry.isVisibleInTranscriptOnly:
        return None
    if entry.origin is not None and entry.origin.kind not in ("", "human"):
        return None
    message = _message_of(entry.message)
    if message is None or _is_the_clis_own(entry, message):
        return None
    is_answered = entry.type == "assistant" or INTERRUPTED in _first_text(message.content)
    return Said(entry.uuid, entry.type, _frame(entry, entry.uuid, entry.message), is_answered)


def _decoded(line: bytes) -> _Entry | None:
    for text in (line, repair(line)):
        if text is None:
            continue
        try:
            if not text.isascii():
                text.decode()
            return _entry.decode(text)
        except DECODE_ERRORS:
            continue
    return None


def _message_of(raw: Raw) -> _Message | None:
    try:
        return _message.decode(raw)
    except DECODE_ERRORS:
        return None


def _is_the_clis_own(entry: _Entry, message: _Message) -> bool:
    if entry.type == "assistant":
        return message.model == INVENTED_MODEL and not entry.isApiErrorMessage
    is_text = isinstance(message.content, str) and entry.promptSource is None
    return is_text and message.content.startswith(COMMAND_TRACES)


def _first_text(content: Any) -> str:
    if isinstance(content, str):
        return content
    blocks = content if isinstance(content, list) else []
    return next((str(b.get("text", "")) for b in blocks if isinstance(b, dict) and b.get("type") == "text"), "")


def _taken_in(entry: _Entry) -> Said | None:
    """A message that the user sent while a turn ran, under the id that the user gave it."""
    attachment = entry.attachment
    if attachment is None or attachment.type != "queued_command" or not isinstance(attachment.prompt, Raw):
        return None
    if attachment.commandMode not in (None, "prompt"):
        return None
    uuid = attachment.source_uuid or entry.uuid
    message = Raw(_encoder.encode(_UserMessage(attachment.prompt)))
    return Said(uuid, "user", _frame(entry, uuid, message, "user"), is_answered=False)


def _frame(entry: _Entry, uuid: str, message: Raw, kind: str | None = None) -> bytes:
    return _encoder.encode(_Frame(kind or entry.type, message, uuid, entry.sessionId, entry.timestamp))


def page(lines: Iterable[bytes], before: str | None, limit: int) -> Page:
    """The ``limit`` newest frames older than the one whose ``uuid`` is ``before`` (None: the newest of all).

    ``lines`` come newest first; no more of them are taken than are needed.  A line that stands there twice counts once.
    """
    chosen: list[bytes] = []
    known: set[str] = set()
    size, found, more, is_answered = 0, before is None, False, False
    for line in lines:
        one = said(line)
        if one is None or one.uuid in known:
            continue
        if not known:
            is_answered = one.is_answered
        known.add(one.uuid)
        if not found:
            found = one.uuid == before
            continue
        if len(chosen) == limit or (chosen and size + len(one.frame) > PAGE_BYTES):
            more = True
            break
        chosen.append(one.frame)
        size += len(one.frame)
    return Page(chosen[::-1], more, found, is_answered)
