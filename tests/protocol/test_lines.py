"""Bytes to lines: the same whatever the reads were, and never more memory than the limit."""

import tracemalloc
from collections.abc import Iterable

from hypothesis import example, given, settings
from hypothesis import strategies as st

from protocol.lines import MAX_LINE_BYTES, Line, LineFramer, Oversized
from tests.soak import size

STREAMS = st.lists(
    st.sampled_from([b"\n", b"\n\n", b"a", b"\r", b"\xe2\x80\xa8", b"\x85", b"\x0b", b"\x00", b"{}", b"0123456789"])
    | st.binary(max_size=6),
    max_size=30,
).map(b"".join)


def expected(stream: bytes, limit: int) -> tuple[list[Line], int]:
    *whole, torn = stream.split(b"\n")
    return [line if len(line) <= limit else Oversized(len(line)) for line in whole], len(torn)


def feed(framer: LineFramer, chunks: Iterable[bytes]) -> list[Line]:
    return [line for chunk in chunks for line in framer.feed(chunk)]


@given(stream=STREAMS, limit=st.integers(1, 12), data=st.data())
@settings(max_examples=size(100, 400), deadline=None)
@example(stream=b"", limit=1, data=None)
def test_any_split_of_any_stream_frames_the_same(stream: bytes, limit: int, data: st.DataObject | None) -> None:
    """Lines, their limit and the torn rest depend on the bytes alone, not on where the reads cut them."""
    cuts = [] if data is None else sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    bounds = zip([0, *cuts], [*cuts, len(stream)], strict=True)
    framer = LineFramer(limit)
    assert (feed(framer, (stream[start:end] for start, end in bounds)), framer.pending_bytes) == expected(stream, limit)


@given(stream=STREAMS, limit=st.integers(1, 12))
@settings(max_examples=size(25, 100), deadline=None)
def test_byte_by_byte_frames_the_same(stream: bytes, limit: int) -> None:
    """The extreme split: one byte per read."""
    framer = LineFramer(limit)
    assert (feed(framer, (stream[at : at + 1] for at in range(len(stream)))), framer.pending_bytes) == expected(
        stream, limit
    )


def test_only_a_line_feed_ends_a_line() -> None:
    """CR, NEL, U+2028 and form feed are content, an empty line is a line, and what is torn is none."""
    framer = LineFramer()
    text = "a\rb\x0bc\x0cd\x85e\u2028f\u2029g\x00".encode()
    assert framer.feed(text + b"\n\nrest") == [text, b""]
    assert framer.pending_bytes == 4
    assert framer.feed(b"") == []
    assert framer.feed(b"\n") == [b"rest"]
    assert framer.pending_bytes == 0


def test_a_line_of_the_limit_passes_and_one_more_byte_does_not() -> None:
    """The limit counts the bytes before the line feed, in one read and over several."""
    framer = LineFramer(4)
    assert framer.feed(b"abcd\nabcde\nxy\n") == [b"abcd", Oversized(5), b"xy"]
    assert feed(framer, [b"ab", b"cd", b"\n", b"ab", b"cd", b"e", b"\n", b"ok\n"]) == [b"abcd", Oversized(5), b"ok"]
    assert MAX_LINE_BYTES == 16 * 1024 * 1024


def test_memory_stays_bounded_on_an_endless_line() -> None:
    """A line without an end, in reads of two bytes or of many, holds about the limit and no more."""
    limit = 1 << 17
    framer = LineFramer(limit)
    tracemalloc.start()
    try:
        for at in range(0, limit, 2):
            framer.feed(at.to_bytes(4, "big").replace(b"\n", b"_")[-2:])
        held, _ = tracemalloc.get_traced_memory()
        for _ in range(64):
            framer.feed(b"x" * limit)
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 2 * limit
    assert after < limit // 2
    assert peak < 4 * limit
    assert framer.pending_bytes == 65 * limit
    assert framer.feed(b"\nnext\n") == [Oversized(65 * limit), b"next"]
