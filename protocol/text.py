"""Only the words: the frames of either view in, what a person reads out.

Pure.  For programs that show or store text and nothing else; the broker does not use it.  Give every message of the
socket to ``TextAssembler.feed`` and show what comes back::

    words = TextAssembler()
    async for message in socket:
        for part in words.feed(message):
            if isinstance(part, TextDelta):
                print(part.text, end="", flush=True)
            else:
                print()  # the turn has ended: part.text is all of it, part.error says what went wrong

Every word is given once.  Where frames are missing (a connection that begins in mid-turn, or one that lost some) the
words come with the whole message, once it is complete; frames that come a second time are left out.  Of a turn whose
end is lost there is no ``TurnText``.  ``epoch`` and ``last_seq`` are what the next hello has to say to go on from here.
"""

from dataclasses import dataclass
from typing import Final, TypeAlias

import msgspec
from msgspec import Struct

from protocol.controls import DECODE_ERRORS

BREAK: Final = "\n\n"
"""Stands between two texts of one turn: before and behind a tool."""


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More words of the running turn."""

    text: str


@dataclass(frozen=True, slots=True)
class TurnText:
    """A message has ended.  ``text``: everything that was said in its turn; ``error`` is None if all went well.

    ``id`` is None for a turn that the CLI began by itself.  The text of a message that was folded into another one's
    turn stands there.
    """

    id: str | None
    text: str
    error: str | None = None


Part: TypeAlias = TextDelta | TurnText


class _Head(Struct, frozen=True):
    """What tells a frame from others, in either view."""

    type: str = ""
    seq: int = 0
    parent_tool_use_id: str | None = None


class _Turn(Struct, frozen=True):
    id: str = ""
    steered: list[str] = []


class _Welcome(Struct, frozen=True):
    epoch: str = ""
    turn: _Turn | None = None
    lost: object = None


class _Started(Struct, frozen=True):
    """``broker.message``."""

    id: str = ""
    state: str = ""


class _Terminal(Struct, frozen=True):
    """``broker.turn_completed`` and ``broker.turn_failed``."""

    id: str | None = None
    is_error: bool = False
    stopped: bool = False
    error: str | None = None
    reason: str | None = None

    @property
    def failure(self) -> str | None:
        if self.stopped:
            return "interrupted"
        return self.reason or self.error or ("error" if self.is_error else None)


class _Piece(Struct, frozen=True):
    type: str = ""
    text: str = ""


class _Message(Struct, frozen=True):
    id: str = ""
    content: list[_Piece] = []


class _Assistant(Struct, frozen=True):
    message: _Message = _Message()


class _Event(Struct, frozen=True):
    type: str = ""
    message: _Message = _Message()
    delta: _Piece = _Piece()
    content_block: _Piece = _Piece()


class _StreamEvent(Struct, frozen=True):
    event: _Event = _Event()


_head = msgspec.json.Decoder(_Head)
_welcome = msgspec.json.Decoder(_Welcome)
_started = msgspec.json.Decoder(_Started)
_terminal = msgspec.json.Decoder(_Terminal)
_assistant = msgspec.json.Decoder(_Assistant)
_event = msgspec.json.Decoder(_Event)
_stream_event = msgspec.json.Decoder(_StreamEvent)


class TextAssembler:
    """The text of one conversation, from one connection or from several, one after another."""

    def __init__(self) -> None:
        self.epoch = ""
        self.last_seq = 0
        self._running: list[str] = []
        """The message whose turn it is, and those that were steered into it."""
        self._said: list[str] = []
        self._message: str | None = None
        """The message whose stream is being read, from its beginning and without a gap."""
        self._block: list[str] = []
        """What was said of its newest block."""
        self._cut = ("", "")
        """A message whose stream broke off here, and what was said of its newest block."""

    def feed(self, message: str | bytes) -> list[Part]:
        """What ``message``, one text message of the socket, adds.  Never raises: other frames add nothing."""
        try:
            head = _head.decode(message)
            if head.seq and not self._is_next(head.seq):
                return []
            return [] if head.parent_tool_use_id is not None else self._on(head.type, message)
        except DECODE_ERRORS:
            return []

    def _is_next(self, seq: int) -> bool:
        """Follow the numbers: false for a frame that was seen before; a gap ends the stream that is being read."""
        if seq <= self.last_seq:
            return False
        if seq > self.last_seq + 1 and self._message is not None:
            self._cut = (self._message, "".join(self._block))
            self._message = None
        self.last_seq = seq
        return True

    def _on(self, kind: str, message: str | bytes) -> list[Part]:
        match kind:
            case "stream_event":
                return self._stream(_stream_event.decode(message).event)
            case "message_start" | "content_block_start" | "content_block_delta":
                return self._stream(_event.decode(message))
            case "assistant":
                return self._whole(_assistant.decode(message).message)
            case "broker.turn_completed" | "broker.turn_failed":
                return [self._end(_terminal.decode(message))]
            case "broker.message":
                self._start(_started.decode(message))
            case "broker.welcome":
                self._begin(_welcome.decode(message))
            case _:
                pass
        return []

    def _begin(self, welcome: _Welcome) -> None:
        """A connection: its frames go on in the same log, or in a new one."""
        if welcome.epoch != self.epoch:
            self.epoch, self.last_seq, self._message = welcome.epoch, 0, None
            self._running = []
        elif welcome.lost is not None:  # the end of the turn that ran may be among it
            if welcome.turn is None or [welcome.turn.id] != self._running[:1]:
                self._forget_turn()
            self._running = []
        if welcome.turn is not None and welcome.turn.id not in self._running:
            self._running = [welcome.turn.id, *welcome.turn.steered]

    def _start(self, message: _Started) -> None:
        if message.state == "started" and message.id not in self._running:
            self._running.append(message.id)

    def _stream(self, event: _Event) -> list[Part]:
        if event.type == "message_start":
            self._message = event.message.id
            self._block.clear()
        elif self._message is None:
            return []  # its words come with the whole message
        elif event.type == "content_block_start":
            self._block.clear()
            return self._say(event.content_block.text)
        elif event.delta.type == "text_delta":
            return self._say(event.delta.text)
        return []

    def _whole(self, message: _Message) -> list[Part]:
        """A finished block of a message: it is news as far as its stream was not read."""
        if message.id == self._message:
            return []
        parts: list[Part] = []
        for piece in message.content:
            text = piece.text
            if message.id == self._cut[0] and text.startswith(self._cut[1]):
                text = text[len(self._cut[1]) :]
            else:
                self._block.clear()
            self._cut = ("", "")
            parts += self._say(text)
        return parts

    def _say(self, text: str) -> list[Part]:
        if not text:
            return []
        shown = BREAK + text if self._said and not self._block else text
        self._block.append(text)
        self._said.append(shown)
        return [TextDelta(shown)]

    def _end(self, terminal: _Terminal) -> TurnText:
        """The turn's text goes to the message whose turn it is; one that only waited, or was folded in, has none."""
        is_other = terminal.id is not None and terminal.id not in self._running[:1]
        if is_other and self._running:
            self._running = [message_id for message_id in self._running if message_id != terminal.id]
            return TurnText(terminal.id, "", terminal.failure)
        if terminal.id is not None:
            del self._running[:1]
        text = "".join(self._said)
        self._forget_turn()
        return TurnText(terminal.id, text, terminal.failure)

    def _forget_turn(self) -> None:
        self._said.clear()
        self._block.clear()
        self._message = None
