"""The view ``messages``: the main thread's stream events as the Messages API sent them, everything else as it is.

Pure.  Caller: ``broker.sockets.connection``, for each frame that it takes out of the log for a client with this view.
The log keeps frames as they go over the wire in the view ``cli`` (``protocol.wire``); here one is opened, and its
``event`` is cut out, numbered and framed again: no byte of the event changes.
"""

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from protocol import codec
from protocol.controls import DECODE_ERRORS
from protocol.wire import text_frame, text_of


class _StreamEvent(Struct, frozen=True, gc=False):
    type: str
    event: Raw
    seq: int
    parent_tool_use_id: str | None = None


class _Event(Struct, frozen=True, gc=False):
    seq: Raw | UnsetType = UNSET


_stream_event = msgspec.json.Decoder(_StreamEvent)
_event = msgspec.json.Decoder(_Event)


def as_messages(frame: bytes) -> bytes:
    """``frame`` of the log as a client with the view ``messages`` gets it."""
    if b'"stream_event"' not in frame:
        return frame
    try:
        found = _stream_event.decode(text_of(frame))
        event = bytes(found.event)
        if found.type != "stream_event" or found.parent_tool_use_id is not None or not event.startswith(b"{"):
            return frame
        if b'"seq"' in event and _event.decode(event).seq is not UNSET:
            event = codec.without_seq(event)
    except DECODE_ERRORS:
        return frame  # an event of another form than the documented one is shown as the CLI says it
    return frame if event[1:].lstrip() == b"}" else text_frame(codec.splice_seq(event, found.seq))
