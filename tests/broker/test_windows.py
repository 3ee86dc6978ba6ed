"""Clients that come back after the window, by time, by count and by bytes, on a clock of the test's own.

Each case is a conversation with a client that stopped reading somewhere; it comes back too late, is told exactly what
it has lost and why, and reads on from there without a gap.  A moment, a frame or a byte earlier nothing is lost.
"""

import random
from dataclasses import dataclass, field

import pytest

from broker.config.tree import Session
from broker.sessions.rest import Rest
from broker.turns.replay import ReplayLog
from protocol.codes import LostReason
from protocol.frames import Lost
from tests.soak import size

CASES = size(100, 2000)
EPOCH = "k3f9"
PLENTY = 10**9
LONGEST = 200
"""Bytes of a frame: none is larger than a log that holds bytes here."""


@dataclass
class Conversation:
    """A session's log and clocks, as ``broker.sessions.tenure`` uses them; ``said`` is every frame there ever was."""

    chance: random.Random
    log: ReplayLog
    keep_s: float = 120.0
    now: float = 1000.0
    last_terminal_at: float = 0.0
    said: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rest = Rest(Session(), self.now, self.now)

    def turn(self, frames: int, longest: int = LONGEST) -> None:
        """A turn of so many frames, in batches; its last one is the terminal."""
        while frames:
            batch = min(frames, self.chance.randint(1, 7))
            for _ in range(batch):
                data = b"%d:" % (len(self.said) + 1)
                self.said.append(data.ljust(self.chance.randint(len(data), longest), b"."))
                self.log.append(self.said[-1])
            self.log.trim()
            frames -= batch
            self.now += self.chance.random()
        self.last_terminal_at = self.now

    def leave(self) -> int:
        """The last client goes; it has read to somewhere in what is kept, that is told."""
        self.rest.detached_at = self.now
        return self.chance.randint(self.log.tail, self.log.head)

    def look(self, at: float) -> None:
        """What the session's task does when it looks at that time."""
        self.now = at
        if at >= self.rest.log_ends_at(self.last_terminal_at, self.keep_s):
            self.log.expire()

    def come_back(self, last_seq: int) -> Lost | None:
        """What is told; then everything is read, in pieces, and compared with what was said."""
        found = self.log.resume(EPOCH, last_seq)
        cursor = found.cursor
        assert cursor == (last_seq if found.lost is None else found.lost.to)
        while cursor < self.log.head:
            frames, last = self.log.read(cursor, self.chance.randint(1, 1000))
            assert frames == self.said[cursor:last]
            assert frames
            cursor = last
        return found.lost


def conversation(seed: int, kind: str, frames: int = PLENTY, bytes_: int = PLENTY) -> Conversation:
    chance = random.Random(f"{kind} {seed}")
    return Conversation(chance, ReplayLog(EPOCH, frames, bytes_), keep_s=chance.choice([0.5, 10.0, 120.0]))


@pytest.mark.parametrize("is_late", [False, True])
def test_too_late_by_time(is_late: bool) -> None:
    """Counted from the later of the client's leaving and the last turn's end; what was said since is kept again."""
    for seed in range(CASES):
        one = conversation(seed, "time")
        one.turn(one.chance.randint(1, 60))
        last_seq = one.leave()
        if one.chance.random() < 0.5:  # a turn runs on while nobody looks
            one.turn(one.chance.randint(1, 60))
        ends_at = one.rest.log_ends_at(one.last_terminal_at, one.keep_s)
        assert ends_at == max(one.rest.detached_at, one.last_terminal_at) + one.keep_s
        one.look(ends_at + one.chance.random() * 100 if is_late else ends_at - one.chance.random() * one.keep_s - 1e-6)
        gone = one.log.head
        if one.chance.random() < 0.5:
            one.turn(one.chance.randint(1, 60))
        lost = Lost(last_seq + 1, gone, LostReason.EXPIRED) if is_late and last_seq < gone else None
        assert one.come_back(last_seq) == lost, seed


@pytest.mark.parametrize("is_late", [False, True])
def test_too_late_by_count(is_late: bool) -> None:
    """One frame more than are kept, or many."""
    for seed in range(CASES):
        kept = random.Random(seed).randint(1, 50)
        one = conversation(seed, "count", frames=kept)
        one.turn(one.chance.randint(1, 60))
        last_seq = one.leave()
        room = kept - (one.log.head - last_seq)
        one.turn(room + one.chance.choice([1, 2, 100]) if is_late else room)
        lost = Lost(last_seq + 1, one.log.head - kept, LostReason.TOO_FAR_BEHIND) if is_late else None
        assert one.come_back(last_seq) == lost, seed


@pytest.mark.parametrize("is_late", [False, True])
def test_too_late_by_bytes(is_late: bool) -> None:
    """One byte more than are kept, or many."""
    for seed in range(CASES):
        one = conversation(seed, "bytes")
        one.turn(one.chance.randint(2, 60))
        last_seq = one.leave()
        one.turn(one.chance.randint(2, 60))
        needed = sum(map(len, one.said[last_seq:]))
        # The same once more, in a log that holds just what the client needs, or a little less.
        bound = one.chance.choice([needed - 1, one.chance.randint(min(LONGEST, needed - 1), needed - 1)])
        again = conversation(seed, "bytes", bytes_=bound if is_late else needed)
        for data in one.said:
            again.log.append(data)
            again.log.trim()
        again.said = one.said
        found = again.come_back(last_seq)
        if not is_late:
            assert found is None, seed
            continue
        kept, total = 1, len(one.said[-1])
        while total + len(one.said[-kept - 1]) <= bound:
            kept, total = kept + 1, total + len(one.said[-kept - 1])
        assert found == Lost(last_seq + 1, len(one.said) - kept, LostReason.TOO_FAR_BEHIND), seed
