"""The pure part of the fault proxy: where bytes are cut, into which pieces they fall and when these are due."""

import random
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from bench.faults import Lane, Limit, Passage

STREAMS = st.binary(max_size=400)
LANES = st.builds(
    Lane,
    latency_s=st.sampled_from([0.0, 0.1, 2.0]),
    jitter_s=st.sampled_from([0.0, 0.05, 3.0]),
    bytes_per_s=st.sampled_from([None, 7.0, 1000.0, 1e9]),
    slice_bytes=st.sampled_from([None, 1, 3, 64]),
)
CUTS = st.one_of(st.none(), st.integers(0, 500))


def chunks_of(data: bytes, chance: random.Random) -> list[bytes]:
    """``data`` in one of its splits."""
    marks = sorted({0, len(data), *(chance.randint(0, len(data)) for _ in range(5))})
    return [data[start:end] for start, end in pairwise(marks)]


def passed(data: bytes, lane: Lane, count: int | None, seed: int) -> tuple[list[tuple[float, float, bytes]], Passage]:
    """When each piece was fed, when it is due, what it holds."""
    passage, chance = Passage(lane, Limit(count), random.Random(seed)), random.Random(seed + 1)
    now, rows = 100.0, []
    for chunk in chunks_of(data, chance):
        rows += [(now, *piece) for piece in passage.feed(chunk, now)]
        now += chance.choice([0.0, 0.001, 1.0])
    return rows, passage


@given(STREAMS, LANES, CUTS, st.integers(0, 99))
def test_exactly_the_first_bytes_pass_whatever_the_split(data: bytes, lane: Lane, count: int | None, seed: int) -> None:
    """Put together, the pieces are the stream up to the cut; it is over when the cut was reached, not before."""
    rows, passage = passed(data, lane, count, seed)
    assert b"".join(piece for *_, piece in rows) == (data if count is None else data[:count])
    assert passage.is_over == (count is not None and 0 < len(data) >= count)
    if passage.is_over:
        assert passage.feed(b"more", 1e6) == []


@given(STREAMS, LANES, st.integers(0, 99))
def test_pieces_are_late_as_the_lane_says_and_in_order(data: bytes, lane: Lane, seed: int) -> None:
    """None before its latency, none after latency, jitter and the width of the lane; none empty, none too large."""
    rows, passage = passed(data, lane, None, seed)
    dues = [due for _, due, _ in rows]
    assert dues == sorted(dues)
    assert all(due >= fed + lane.latency_s for fed, due, _ in rows)
    for index, (fed, due, _) in enumerate(rows):
        before = sum(len(piece) for *_, piece in rows[: index + 1])
        width = 0.0 if lane.bytes_per_s is None else before / lane.bytes_per_s
        assert due <= fed + lane.latency_s + lane.jitter_s + width + 1e-6
    assert all(1 <= len(piece) <= (lane.slice_bytes or len(data)) for *_, piece in rows)
    assert passage.closes_at(0.0) >= (dues or [0.0])[-1]


@given(STREAMS, st.sampled_from([7.0, 100.0, 4000.0]), st.integers(0, 99))
def test_a_narrow_lane_lets_no_more_through_than_it_says(data: bytes, rate: float, seed: int) -> None:
    """Up to any moment at most ``bytes_per_s`` for each second since the first byte came."""
    rows, _ = passed(data, Lane(bytes_per_s=rate), None, seed)
    total = 0
    for _, due, piece in rows:
        total += len(piece)
        assert total <= (due - 100.0) * rate + 1e-6


@given(STREAMS, LANES, CUTS, st.integers(0, 99))
def test_the_same_seed_gives_the_same_pieces(data: bytes, lane: Lane, count: int | None, seed: int) -> None:
    """So a run can be repeated."""
    assert passed(data, lane, count, seed)[0] == passed(data, lane, count, seed)[0]


@given(st.lists(st.integers(0, 300), min_size=1, max_size=6), st.data(), st.integers(0, 99))
def test_a_cut_inside_a_frames_header_is_found_in_any_split(sizes: list[int], data: st.DataObject, seed: int) -> None:
    """``frame`` and ``bytes`` count from the first byte of that frame, behind the HTTP head and the frames before."""
    head = b"HTTP/1.1 101 Switching Protocols\r\n\r\n"
    frames = [_server_frame(b"x" * size) for size in sizes]
    number = data.draw(st.integers(0, len(frames) - 1))
    inside = data.draw(st.integers(1, len(frames[number])))
    stream = head + b"".join(frames)
    limit, kept = Limit(frame=number, header_bytes=inside), b""
    for chunk in chunks_of(stream, random.Random(seed)):
        allowed = limit.allowed(chunk)
        kept += chunk[:allowed]
        if allowed is not None:
            break
    # Where a split lies behind the wanted byte but the header's start came before it, the byte may have passed.
    assert kept == stream[: len(head) + sum(map(len, frames[:number])) + inside]


def _server_frame(payload: bytes) -> bytes:
    size = len(payload)
    return (bytes([0x81, size]) if size < 126 else bytes([0x81, 126]) + size.to_bytes(2, "big")) + payload
