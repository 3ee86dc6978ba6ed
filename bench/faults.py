"""What a bad network does to one direction of a connection, decided without a socket or a clock.  Pure.

A ``Lane`` says how the bytes travel, an ``At`` where the connection ends; a ``Passage`` applies both to one direction:
bytes and the time in, pieces and the times at which they are due out.  The same seed and the same input give the same
pieces.  Callers: ``bench.fault_proxy``.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

from bench.server_bytes import ServerBytes

HELD_BYTES: Final = 1 << 17
TICK_S: Final = 0.05
"""A narrow lane hands over what fits into this time, not a whole chunk at its end."""


class How(StrEnum):
    """How a direction ends."""

    RESET = "reset"
    """Both ends get an RST."""
    CLOSE = "close"
    """Both ends get a FIN, behind what was sent before."""
    HOLE = "hole"
    """Nothing more is read or forwarded in that direction, and the sockets stay open."""


@dataclass(frozen=True, slots=True)
class Lane:
    """How the bytes of one direction travel; the defaults: at once and as they came."""

    latency_s: float = 0.0
    jitter_s: float = 0.0
    """Up to this much is added to the latency of each piece; their order is kept."""
    bytes_per_s: float | None = None
    slice_bytes: int | None = None
    """Pieces of 1 to this many bytes, each written on its own."""
    close_after_s: float = 0.0
    """How long after the last byte the other end learns that this one has closed."""


@dataclass(frozen=True, slots=True)
class At:
    """Where a connection ends: after ``down`` bytes to the client, after ``up`` bytes to the server, or after ``bytes``
    of the header of frame number ``frame`` (from 0) of the server; and how."""

    down: int | None = None
    up: int | None = None
    frame: int | None = None
    bytes: int = 1
    how: How = How.RESET


class Piece(NamedTuple):
    """Bytes that are due at a time (seconds of the caller's clock)."""

    due: float
    data: bytes


class Limit:
    """How many bytes of one direction may pass."""

    def __init__(self, count: int | None = None, frame: int | None = None, header_bytes: int = 0) -> None:
        self._left = count
        self._frame = frame
        self._header_bytes = header_bytes
        self._seen = ServerBytes()

    def allowed(self, chunk: bytes) -> int | None:
        """How much of ``chunk`` passes before the end; None: all of it, and the connection goes on."""
        if self._frame is not None:
            before = self._seen.total
            self._seen.feed(chunk)
            if len(self._seen.starts) > self._frame:
                self._left = self._seen.starts[self._frame] + self._header_bytes - before
                self._frame = None
        if self._left is None:
            return None
        if len(chunk) >= self._left:
            return self._left
        self._left -= len(chunk)
        return None


class Passage:
    """One direction of one connection."""

    def __init__(self, lane: Lane, limit: Limit, chance: random.Random) -> None:
        self._lane = lane
        self._limit = limit
        self._chance = chance
        self._free_at = 0.0
        self._last_due = 0.0
        self.is_over = False
        """The limit is reached: nothing passes behind the pieces that were handed out."""

    @property
    def most_held(self) -> int:
        """Bytes of pieces that are not due yet, above which no more should be fed."""
        rate = self._lane.bytes_per_s
        return HELD_BYTES if rate is None else min(HELD_BYTES, max(1, int(2 * rate * (TICK_S + self._lane.latency_s))))

    def feed(self, data: bytes, now: float) -> list[Piece]:
        """The pieces of ``data`` that pass, in order; ``due`` never decreases.  Nothing once it is over."""
        if self.is_over:
            return []
        allowed = self._limit.allowed(data)
        self.is_over = allowed is not None
        return [Piece(self._due(len(piece), now), piece) for piece in self._slices(data[:allowed])]

    def closes_at(self, now: float) -> float:
        """When the other end is to learn that this one closed at ``now``."""
        return max(now, self._last_due) + self._lane.close_after_s

    def _slices(self, data: bytes) -> Iterator[bytes]:
        start = 0
        while start < len(data):
            size = self._size(len(data))
            yield data[start : start + size]
            start += size

    def _size(self, whole: int) -> int:
        lane = self._lane
        size = self._chance.randint(1, lane.slice_bytes) if lane.slice_bytes is not None else whole
        return size if lane.bytes_per_s is None else min(size, max(1, int(lane.bytes_per_s * TICK_S)))

    def _due(self, size: int, now: float) -> float:
        lane = self._lane
        self._free_at = max(now, self._free_at) + (size / lane.bytes_per_s if lane.bytes_per_s is not None else 0.0)
        late = lane.latency_s + (self._chance.uniform(0.0, lane.jitter_s) if lane.jitter_s else 0.0)
        self._last_due = max(self._last_due, self._free_at + late)
        return self._last_due
