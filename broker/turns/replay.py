"""The session's log: numbered frames, bounded, from which every connection reads at its own position.

Pure: no I/O, no clock.  Owner: one ``broker.sessions.session.Session``.  An outbox is a cursor into this log, not a
copy, so a replay after a reconnect and the live stream are the same loop.  Frames are kept as the sender gave them
(already framed for the wire by the session), hence a batch is one ``b"".join``.
"""

from dataclasses import dataclass
from itertools import islice

from protocol.codes import LostReason
from protocol.frames import Lost


@dataclass(frozen=True, slots=True)
class Resume:
    """Where a client goes on: it reads after ``cursor``; ``lost`` tells what will not come."""

    cursor: int
    lost: Lost | None


class ReplayLog:
    """Frames ``tail + 1 .. head``.  The newest frame is always kept, whatever its size.

    ``max_frames`` and ``max_bytes`` hold after each ``trim``, which the session calls once the readers were offered
    what is new: a client that keeps up never loses a frame, however many came at once.  The last frame that alone is
    larger than ``max_bytes`` does not count, or it would push out what slow clients have yet to read before and after
    it.  ``expire`` (after the configured seconds without a reader) empties the log.
    """

    def __init__(self, epoch: str, max_frames: int, max_bytes: int) -> None:
        self.epoch = epoch
        self._max_frames = max_frames
        self._max_bytes = max_bytes
        self._frames: list[bytes] = []
        self._first = 0  # index in _frames of the oldest kept frame: trimming is amortised
        self._bytes = 0
        self._exempt = 0  # the seq of the last frame that alone is larger than max_bytes
        self._exempt_bytes = 0  # its size while it is kept
        self.head = 0
        self._expired_to = 0

    @property
    def tail(self) -> int:
        """The seq before the oldest kept frame."""
        return self.head - (len(self._frames) - self._first)

    @property
    def size(self) -> int:
        """Bytes kept, as framed for the wire."""
        return self._bytes

    def append(self, frame: bytes) -> int:
        """Add a frame that was made for ``head + 1`` and return that seq.  ``trim`` follows."""
        self.head += 1
        self._frames.append(frame)
        self._bytes += len(frame)
        if len(frame) > self._max_bytes:
            self._exempt, self._exempt_bytes = self.head, len(frame)
        return self.head

    def extend(self, frames: list[bytes]) -> None:
        """Add frames that were made for ``head + 1`` and on.  ``trim`` follows."""
        size = sum(map(len, frames))
        if size > self._max_bytes:  # one of them alone may be
            for frame in frames:
                self.append(frame)
            return
        self.head += len(frames)
        self._frames += frames
        self._bytes += size

    def trim(self) -> None:
        """Forget the oldest frames beyond the bounds."""
        count = len(self._frames) - self._first
        if count > self._max_frames:
            self._forget(count - self._max_frames)
        excess = self._bytes - self._exempt_bytes - self._max_bytes
        if excess > 0:
            self._forget(self._oldest(excess))
        if self._first > 1024 and self._first * 2 > len(self._frames):
            del self._frames[: self._first]
            self._first = 0

    def _oldest(self, excess: int) -> int:
        """How many of the oldest frames hold ``excess`` bytes, the exempt one not counted; the newest stays."""
        seq, count = self.tail, 0
        for frame in islice(self._frames, self._first, len(self._frames) - 1):
            seq, count = seq + 1, count + 1
            excess -= 0 if seq == self._exempt else len(frame)
            if excess <= 0:
                break
        return count

    def _forget(self, count: int) -> None:
        first, end, tail = self._first, self._first + count, self.tail
        self._bytes -= sum(map(len, self._frames[first:end]))
        self._frames[first:end] = [b""] * count
        if tail < self._exempt <= tail + count:
            self._exempt_bytes = 0
        self._first = end

    def expire(self) -> None:
        """Forget every frame; ``head`` and ``epoch`` stay, so that a late resume is told what it lost."""
        self._frames.clear()
        self._first = 0
        self._bytes = self._exempt_bytes = 0
        self._expired_to = self.head

    def read(self, after: int, max_bytes: int, upto: int | None = None) -> tuple[list[bytes], int]:
        """Frames after ``after``, at most ``max_bytes`` of them (or one larger frame), and the seq of the last.

        ``upto`` bounds the last seq.  Returns ``([], after)`` when there is nothing.  ``after`` must not lie before
        ``tail``: see ``has_fallen_off``.
        """
        last = self.head if upto is None else min(upto, self.head)
        if last <= after:
            return [], after
        start = len(self._frames) - (self.head - after)
        stop = len(self._frames) - (self.head - last)
        chosen = self._frames[start:stop]
        if self._bytes <= max_bytes or sum(map(len, chosen)) <= max_bytes:
            return chosen, last
        total = 0
        for count, frame in enumerate(chosen):
            total += len(frame)
            if total > max_bytes and count:
                return chosen[:count], after + count
        return chosen, last

    def has_fallen_off(self, after: int) -> bool:
        """Whether frames that a reader at ``after`` still needs are gone."""
        return after < self.tail

    def resume(self, epoch: str | None, last_seq: int | None) -> Resume:
        """Decide where a client goes on, and say what it lost: never a silent gap.

        ``last_seq`` None is live only; 0 without an epoch is all that is kept.
        """
        if last_seq is None:
            return Resume(self.head, None)
        if epoch is not None and epoch != self.epoch:
            return Resume(self.tail, Lost(last_seq + 1, None, LostReason.EPOCH_CHANGED))
        if last_seq > self.head:
            return Resume(self.head, Lost(self.head + 1, last_seq, LostReason.FUTURE_SEQ))
        if last_seq >= self.tail or (last_seq == 0 and epoch is None):
            return Resume(max(last_seq, self.tail), None)
        reason = LostReason.EXPIRED if self.tail <= self._expired_to else LostReason.TOO_FAR_BEHIND
        return Resume(self.tail, Lost(last_seq + 1, self.tail, reason))
