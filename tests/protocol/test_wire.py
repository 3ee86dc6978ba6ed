"""Server frames, byte for byte those of the websockets library."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode

from protocol.wire import text_frame, text_of
from tests.soak import size


def by_websockets(payload: bytes) -> bytes:
    return Frame(Opcode.TEXT, payload).serialize(mask=False)


@pytest.mark.parametrize("size", [0, 1, 124, 125, 126, 127, 128, 65534, 65535, 65536, 65537, 1 << 20])
def test_a_text_frame_is_that_of_websockets(size: int) -> None:
    """The length takes 7, 16 or 64 bits exactly where RFC 6455 says so."""
    payload = b"x" * size
    assert text_frame(payload) == by_websockets(payload)
    assert text_of(text_frame(payload)) == payload


@given(st.text(max_size=400))
@settings(max_examples=size(20, 60), deadline=None)
def test_any_text_is_framed_as_by_websockets(text: str) -> None:
    """Any text, whatever its length in bytes; and it comes out again."""
    assert text_frame(text.encode()) == by_websockets(text.encode())
    assert text_of(text_frame(text.encode())) == text.encode()
