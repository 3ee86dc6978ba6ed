"""Bytes to client frames, broker frames to bytes, and the splice that numbers a line of the CLI.

Callers: ``broker.sockets.connection`` decodes what a client sent; ``broker.sessions.session`` and
``broker.sessions.interpreter`` encode what goes into the log.
"""

import msgspec

from protocol.codes import CloseCode, ErrorCode
from protocol.controls import DECODE_ERRORS, mistake
from protocol.errors import ClientError, ConnectionRefused
from protocol.frames import ClientFrame, Hello, ServerFrame


class _Envelope(msgspec.Struct, frozen=True):
    type: str


_envelope = msgspec.json.Decoder(_Envelope)
_frame: msgspec.json.Decoder[ClientFrame] = msgspec.json.Decoder(ClientFrame)
_encoder = msgspec.json.Encoder()
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])


def decode_client(data: bytes) -> ClientFrame:
    """Decode one text message of a client.

    ``data`` is valid UTF-8 (the connection has checked it).  Raises ``ClientError``: ``bad_frame`` with the JSON path,
    or ``bad_options`` where the mistake lies below ``$.options``.  Duplicate keys: the last wins.
    """
    try:
        return _frame.decode(data)
    except DECODE_ERRORS as error:
        raise _client_error(data, error) from error


def decode_hello(data: bytes) -> Hello:
    """Decode the first frame of a connection; raises as ``decode_client``, or ``ConnectionRefused(4502)``."""
    try:
        kind = _envelope.decode(data).type
    except DECODE_ERRORS as error:
        raise ConnectionRefused(CloseCode.HELLO_EXPECTED) from error
    if kind != "broker.hello":
        raise ConnectionRefused(CloseCode.HELLO_EXPECTED)
    hello = decode_client(data)
    assert isinstance(hello, Hello)
    return hello


def _client_error(data: bytes, error: Exception) -> ClientError:
    text = mistake(error)
    is_option = isinstance(error, msgspec.ValidationError) and "`$.options" in text
    return ClientError(ErrorCode.BAD_OPTIONS if is_option else ErrorCode.BAD_FRAME, text)


def count_unknown_fields(frame: ClientFrame, data: bytes) -> int:
    """How many top-level fields of an SDK-shaped frame were dropped.  Never raises: ``data`` decoded before."""
    known = set(frame.__struct_encode_fields__) | {"type"}
    return sum(1 for key in _fields.decode(data) if key not in known)


def encode_server(frame: ServerFrame | msgspec.Raw) -> bytes:
    """One frame of the broker as JSON bytes, without ``seq``; ``Raw`` is a line of the CLI and stays as it is."""
    return _encoder.encode(frame)


def splice_seq(line: bytes, seq: int) -> bytes:
    """Append ``,"seq":N`` as the last key of the JSON object ``line`` and touch nothing else.

    ``line`` is one complete, non-empty JSON object without a top-level ``seq`` (see ``without_seq``).
    """
    return b'%b,"seq":%d}' % (line.rstrip()[:-1], seq)


def without_seq(line: bytes) -> bytes:
    """The JSON object ``line`` without its own top-level ``seq``, other values as they stand: the rare line that
    cannot be spliced."""
    fields = _fields.decode(line)
    fields.pop("seq", None)
    return _encoder.encode(fields or {"type": ""})
