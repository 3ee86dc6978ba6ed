"""Where the frames of a client end: found in any cutting of its bytes, and nothing else is."""

from hypothesis import given
from hypothesis import strategies as st

from protocol.boundaries import Boundaries
from tests.kit.raw import client_frame

HEAD = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
FRAMES = st.builds(
    lambda size, opcode, final, masked: client_frame(bytes(size), opcode, final=final, masked=masked),
    st.sampled_from([0, 1, 2, 125, 126, 127, 300, 65535, 65536]), st.integers(0, 15), st.booleans(), st.booleans(),
)  # fmt: skip


@given(st.lists(FRAMES, max_size=12), st.integers(1, 5), st.data())
def test_portions_end_behind_frames_whatever_the_reads(frames: list[bytes], most: int, draw: st.DataObject) -> None:
    """Every portion but the last of a read ends with a frame, and none has more frames than were asked for."""
    stream, ends, at = HEAD, [len(HEAD)], len(HEAD)
    for frame in frames:
        stream, at = stream + frame, at + len(frame)
        ends.append(at)
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    boundaries, seen = Boundaries(), 0
    for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        read, at = stream[begin:end], 0
        while at < len(read):
            stop = boundaries.portion(read, at, most)
            assert at < stop <= len(read)
            ended = [each for each in ends if seen < each <= seen + stop - at]
            assert len(ended) <= most
            if stop < len(read):
                assert len(ended) == (1 if ended[0] == len(HEAD) else most)
                assert ended[-1] == seen + stop - at
            seen, at = seen + stop - at, stop
    assert seen == len(stream)


def test_the_head_is_a_portion_of_its_own() -> None:
    """What comes in one piece with the request waits for the next portion."""
    boundaries = Boundaries()
    ping = client_frame(b"", 9)
    assert boundaries.portion(HEAD + ping, 0, 9) == len(HEAD)
    assert boundaries.portion(HEAD + ping, len(HEAD), 1) == len(HEAD + ping)


def test_a_length_that_nobody_sends_is_waited_for() -> None:
    """A frame of 8 exbibytes swallows what follows: it is the library that refuses it."""
    boundaries = Boundaries()
    data = HEAD + b"\x81\xff" + b"\xff" * 8 + bytes(4)
    assert boundaries.portion(data, 0, 2) == len(HEAD)
    assert boundaries.portion(data, len(HEAD), 2) == len(data)
    assert boundaries.portion(bytes(10_000), 0, 1) == 10_000
