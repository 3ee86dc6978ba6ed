"""The log against a simple model: every frame once, in order, within the bounds, and never a silent gap."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from broker.turns.replay import ReplayLog, Resume
from protocol.codes import LostReason
from protocol.frames import Lost
from tests.soak import size

EPOCH = "k3f9"
FRAMES, BYTES = st.integers(1, 6), st.integers(1, 60)


def frame(seq: int, size: int) -> bytes:
    """``size`` bytes, or as many as the number needs."""
    return f"{seq}:".encode().ljust(size, b".")


class Log(RuleBasedStateMachine):
    """``kept`` is what the model holds: all frames since the last expiry, then cut from the old end."""

    def __init__(self) -> None:
        super().__init__()
        self.log = ReplayLog(EPOCH, 1, 1)
        self.kept: list[tuple[int, bytes]] = []
        self.head = 0
        self.large = 0
        self.expired_to = 0
        self.cursor = 0

    @initialize(frames=FRAMES, size=BYTES)
    def bounds(self, frames: int, size: int) -> None:
        self.max_frames, self.max_bytes = frames, size
        self.log = ReplayLog(EPOCH, frames, size)

    @property
    def tail(self) -> int:
        return self.head - len(self.kept)

    def counted(self) -> int:
        return sum(len(data) for seq, data in self.kept if seq != self.large)

    @rule(sizes=st.lists(st.integers(0, 90), max_size=4), one_by_one=st.booleans(), is_trimmed=st.booleans())
    def append(self, sizes: list[int], one_by_one: bool, is_trimmed: bool) -> None:
        batch = []
        for length in sizes:
            self.head += 1
            data = frame(self.head, length)
            self.kept.append((self.head, data))
            self.large = self.head if len(data) > self.max_bytes else self.large
            if one_by_one:
                assert self.log.append(data) == self.head
            else:
                batch.append(data)
        self.log.extend(batch)
        if is_trimmed:
            self.trim()

    @rule()
    def trim(self) -> None:
        self.log.trim()
        while len(self.kept) > 1 and (len(self.kept) > self.max_frames or self.counted() > self.max_bytes):
            self.kept.pop(0)
        assert self.log.head - self.log.tail <= self.max_frames
        assert self.counted() <= self.max_bytes or len(self.kept) == 1
        assert self.kept or self.head == self.expired_to

    @rule()
    def expire(self) -> None:
        self.log.expire()
        self.kept, self.expired_to = [], self.head

    @rule(data=st.data(), max_bytes=st.integers(1, 200), upto=st.none() | st.integers(0, 60))
    def read(self, data: st.DataObject, max_bytes: int, upto: int | None) -> None:
        after = data.draw(st.integers(self.tail, self.head))
        frames, last = self.log.read(after, max_bytes, upto)
        limit = self.head if upto is None else min(upto, self.head)
        expected = [bytes_ for seq, bytes_ in self.kept if after < seq <= limit]
        assert frames == expected[: len(frames)]
        assert last == after + len(frames)
        assert bool(frames) == bool(expected)
        assert sum(map(len, frames)) <= max_bytes or len(frames) == 1
        if len(frames) < len(expected):
            assert sum(map(len, expected[: len(frames) + 1])) > max_bytes

    @rule(max_bytes=st.integers(1, 60))
    def follow(self, max_bytes: int) -> None:
        """A reader that goes on where it stopped sees every number once, or is told that it fell off."""
        assert self.log.has_fallen_off(self.cursor) == (self.cursor < self.tail)
        if self.log.has_fallen_off(self.cursor):
            self.cursor = self.log.resume(EPOCH, self.cursor).cursor
        while self.cursor < self.head:
            frames, last = self.log.read(self.cursor, max_bytes)
            numbers = [int(data.partition(b":")[0]) for data in frames]
            assert numbers == list(range(self.cursor + 1, last + 1))
            assert numbers
            self.cursor = last

    @rule(last_seq=st.none() | st.integers(0, 80), epoch=st.sampled_from([None, EPOCH, "other"]))
    def resume(self, last_seq: int | None, epoch: str | None) -> None:
        found = self.log.resume(epoch, last_seq)
        assert self.tail <= found.cursor <= self.head
        lost = found.lost
        if last_seq is None:
            assert found == Resume(self.head, None)
        elif epoch == "other":
            assert found == Resume(self.tail, Lost(last_seq + 1, None, LostReason.EPOCH_CHANGED))
        elif last_seq > self.head:
            assert found == Resume(self.head, Lost(self.head + 1, last_seq, LostReason.FUTURE_SEQ))
        elif last_seq == 0 and epoch is None:
            assert found == Resume(self.tail, None)
        elif last_seq >= self.tail:
            assert found == Resume(last_seq, None)
        else:  # told exactly what lies between where it stopped and where it goes on
            assert lost is not None
            assert (lost.from_, lost.to, found.cursor) == (last_seq + 1, self.tail, self.tail)
            assert lost.reason is (
                LostReason.EXPIRED if self.tail <= self.expired_to else LostReason.TOO_FAR_BEHIND
            )  # fmt: skip

    @invariant()
    def agree(self) -> None:
        assert (self.log.head, self.log.tail) == (self.head, self.tail)
        assert self.log.size == sum(len(data) for _, data in self.kept)


def test_the_log_is_its_model() -> None:
    """Append, trim, read anywhere, resume from anywhere, expire: as the model says, in any order."""
    run_state_machine_as_test(Log, settings=settings(max_examples=size(50, 200), stateful_step_count=40, deadline=None))


def filled(count: int, max_frames: int = 3, max_bytes: int = 1000) -> ReplayLog:
    log = ReplayLog(EPOCH, max_frames, max_bytes)
    for seq in range(1, count + 1):
        log.append(frame(seq, 10))
        log.trim()
    return log


def test_the_newest_frame_is_kept_whatever_its_size() -> None:
    """A frame larger than the whole log is still sent, and the next one does not push out what is unread."""
    log = filled(3, max_bytes=50)
    log.append(frame(4, 10_000))
    log.trim()
    assert log.read(3, 1)[1] == 4
    log.append(frame(5, 10))
    log.trim()
    assert log.tail == 2
    assert [len(data) for data in log.read(2, 20_000)[0]] == [10, 10_000, 10]
    log.append(frame(6, 10_000))
    log.trim()
    assert (log.tail, log.size) == (4, 10_010)


def test_a_batch_fills_its_bytes() -> None:
    """As many frames as fit, to the byte; one that does not fit alone; no further than asked."""
    log = filled(3)
    assert [log.read(0, size)[1] for size in (1, 10, 19, 20, 29, 30, 31)] == [1, 1, 1, 2, 2, 3, 3]
    assert log.read(0, 1000, 2)[1] == 2
    assert log.read(2, 1000, 1) == ([], 2)


def test_an_empty_log_has_nothing_to_replay() -> None:
    """Before the first frame every position is live, and one from the future is told so."""
    log = ReplayLog(EPOCH, 3, 1000)
    assert log.resume(None, None) == Resume(0, None)
    assert log.resume(None, 0) == Resume(0, None)
    assert log.resume(EPOCH, 0) == Resume(0, None)
    assert log.resume(EPOCH, 7) == Resume(0, Lost(1, 7, LostReason.FUTURE_SEQ))
    assert log.read(0, 100) == ([], 0)
    log.trim()
    assert (log.head, log.tail, log.size) == (0, 0, 0)


def test_the_reason_of_a_loss() -> None:
    """What ran out of time is told from what ran out of room, also when frames were added after."""
    log = filled(3)
    log.expire()
    assert log.resume(EPOCH, 1).lost == Lost(2, 3, LostReason.EXPIRED)
    assert log.resume(EPOCH, 3).lost is None
    log.append(frame(4, 10))
    assert log.resume(EPOCH, 1).lost == Lost(2, 3, LostReason.EXPIRED)
    assert filled(9).resume(EPOCH, 1).lost == Lost(2, 6, LostReason.TOO_FAR_BEHIND)
    assert filled(9).resume(EPOCH, 0).lost == Lost(1, 6, LostReason.TOO_FAR_BEHIND)
    assert filled(9).resume(None, 0) == Resume(6, None)


def test_a_long_life_does_not_grow_the_log() -> None:
    """After many times its size the log holds its bound, and its list a bounded multiple of it."""
    log = filled(20_000, max_frames=100)
    assert (log.head, log.tail, log.size) == (20_000, 19_900, 1000)
    assert len(log._frames) < 3000
    frames, last = log.read(19_900, 10**6)
    assert (len(frames), last, frames[0][:6]) == (100, 20_000, b"19901:")
    log.expire()
    assert (log.head, log.tail, log.size) == (20_000, 20_000, 0)
    assert log.append(frame(20_001, 10)) == 20_001
    assert log.read(20_000, 1)[1] == 20_001
