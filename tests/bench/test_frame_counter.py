"""``bench.peers.frame_counter``: the same messages as the websockets library sent, however the bytes are cut."""

from collections.abc import Callable, Generator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode

from bench.peers.connection import client_frame
from bench.peers.frame_counter import Control, FrameCounter, LineCounter

SIZES = st.one_of(st.integers(0, 200), st.sampled_from([125, 126, 127, 65535, 65536, 70_000]))


@st.composite
def servers(draw: st.DrawFn) -> list[Frame]:
    """What a server may send: whole messages, fragments of them, and control frames in between."""
    found = []
    for size in draw(st.lists(SIZES, max_size=8)):
        payload = draw(st.sampled_from([b"a", b"\x81", b"\xff", b"\n"])) * size
        match draw(st.integers(0, 3)):
            case 0:
                found.append(Frame(Opcode.PING, payload[:125]))
            case 1:
                found += [Frame(Opcode.TEXT, payload, fin=False), Frame(Opcode.CONT, payload[:7], fin=True)]
            case _:
                found.append(Frame(draw(st.sampled_from([Opcode.TEXT, Opcode.BINARY])), payload))
    return found


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    """``data``, cut at these places."""
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:end] for start, end in pairwise(places)]


@given(servers(), st.lists(st.integers(0, 1 << 20), max_size=12))
def test_any_cut_of_the_bytes_gives_the_same_messages(frames: list[Frame], cuts: list[int]) -> None:
    """Payloads, the number of messages and the control frames are those that the library put into the bytes."""
    data = b"".join(frame.serialize(mask=False) for frame in frames)
    counter, payloads, messages = FrameCounter(), [], 0
    for piece in pieces(data, cuts):
        found = counter.feed(piece)
        payloads += [found.buffer[start:end] for start, end in zip(found.spans[::2], found.spans[1::2], strict=True)]
        messages += found.messages
    sent = [frame for frame in frames if frame.opcode not in (Opcode.PING, Opcode.CLOSE)]
    assert payloads == [bytes(frame.data) for frame in sent]
    assert messages == sum(frame.fin for frame in sent)
    assert counter.controls == [
        Control(frame.opcode, bytes(frame.data)) for frame in frames if frame.opcode is Opcode.PING
    ]


@pytest.mark.parametrize("size", [0, 1000])
def test_a_masked_frame_is_no_servers(size: int) -> None:
    """Whatever sends one is not what should be measured."""
    with pytest.raises(ValueError, match="masked"):
        FrameCounter().feed(client_frame(b"x" * size))


@given(st.lists(st.binary(max_size=40).map(lambda line: line.replace(b"\n", b" "))), st.lists(st.integers(0, 4000)))
def test_lines_are_counted_the_same_way(lines: list[bytes], cuts: list[int]) -> None:
    """A pipe's lines, without their ends, however they were read; what has no end yet is none."""
    counter, found, messages = LineCounter(), [], 0
    for piece in pieces(b"".join(line + b"\n" for line in lines) + b"rest", cuts):
        part = counter.feed(piece)
        found += [part.buffer[start:end] for start, end in zip(part.spans[::2], part.spans[1::2], strict=True)]
        messages += part.messages
    assert found == lines
    assert messages == len(lines)


@given(SIZES)
def test_what_the_receiver_sends_is_a_frame(size: int) -> None:
    """The library's own parser takes it, with its payload as it was."""
    payload = bytes(range(256)) * (size // 256 + 1)
    frame = _returned(Frame.parse(_reader(client_frame(payload[:size])), mask=True))
    assert (frame.opcode, bytes(frame.data)) == (Opcode.TEXT, payload[:size])


def _returned(parser: Generator[None, None, Frame]) -> Frame:
    """What a parser returns that has all its bytes."""
    found: list[Frame] = []

    def run() -> Generator[None, None, None]:
        found.append((yield from parser))

    assert list(run()) == []
    return found[0]


def _reader(data: bytes) -> Callable[[int], Generator[None, None, bytes]]:
    at = 0

    def read_exact(size: int) -> Generator[None, None, bytes]:
        nonlocal at
        at += size
        yield from ()
        return data[at - size : at]

    return read_exact
