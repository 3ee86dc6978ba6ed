"""RFC 6455 framing of one unmasked text message, as a server sends it (section 5.2).

Unmasked and uncompressed, a frame is the same bytes for every client: it is made once, kept in the replay log and
written to all of them.  Callers: ``protocol.events``, ``broker.sessions.session``,
``broker.sockets.connection``, ``broker.turns.view``.
"""

from struct import Struct

_SHORT = Struct("!BB").pack
_MEDIUM = Struct("!BBH").pack
_LONG = Struct("!BBQ").pack
_FIN_TEXT = 0x81
_HEADS = {126: 4, 127: 10}


def frame_head(size: int) -> bytes:
    """What stands before the ``size`` bytes of one final text frame."""
    if size < 126:
        return _SHORT(_FIN_TEXT, size)
    if size < 65536:
        return _MEDIUM(_FIN_TEXT, 126, size)
    return _LONG(_FIN_TEXT, 127, size)


def text_frame(payload: bytes) -> bytes:
    """``payload`` (valid UTF-8) as one final text frame."""
    return frame_head(len(payload)) + payload


def text_of(frame: bytes) -> bytes:
    """The payload of a frame that ``text_frame`` has made."""
    return frame[_HEADS.get(frame[1], 2) :]
