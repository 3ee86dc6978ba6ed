"""The two sides of a session as its parts see them: connections that read, and the ways out that the session lends.

Protocols, and who a client is across its connections.  Implemented by ``broker.sockets.connection`` and
``broker.sessions.session``; used by ``broker.sessions.exchange`` and what is below it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from msgspec import Raw

from broker.turns.turns import Turns
from protocol.codes import CloseCode
from protocol.frames import ServerFrame


class Reader(Protocol):
    """A connection, as a session sees it."""

    instance: str

    @property
    def is_controller(self) -> bool:
        """Whether it may do more than read."""

    def wake(self) -> None:
        """New frames are in the log."""

    def send(self, frame: ServerFrame | Raw) -> None:
        """Queue a frame of this connection (``Raw``: a line of the CLI), after everything that is in the log now."""

    def close_soon(self, code: CloseCode, reason: str) -> None:
        """End the connection once what is queued has gone out."""


class Outlet(Protocol):
    """What the parts of a session need of it."""

    readers: list[Reader]
    turns: Turns

    @property
    def wake_task(self) -> Callable[[], None]:
        """Has the session's task look at its clocks again."""

    @property
    def has_process(self) -> bool:
        """Whether a CLI is there to be asked."""

    def write(self, line: bytes) -> None:
        """Queue a line for the CLI."""

    def publish(self, frame: ServerFrame) -> int:
        """Number, log and send a session event."""

    def forward(self, line: bytes) -> int:
        """Number, log and send a line of the CLI."""

    def settled(self) -> None:
        """A prompt was closed: the clocks of the turn run again."""

    def count_question(self, kind: str, outcome: str) -> None:
        """A request of the CLI came to its end."""


@dataclass(frozen=True, slots=True, eq=False)
class Owner:
    """A client instance that has declared hooks or MCP servers of its own; without a name, its one connection."""

    instance: str
    reader: Reader | None

    @classmethod
    def of(cls, reader: Reader) -> "Owner":
        """The instance behind a connection."""
        return cls(reader.instance, None if reader.instance else reader)

    def is_(self, reader: Reader) -> bool:
        """Whether ``reader`` is a connection of this instance that may answer."""
        is_its = reader.instance == self.instance if self.instance else reader is self.reader
        return is_its and reader.is_controller

    def among(self, readers: list[Reader]) -> Reader | None:
        """The instance's connection, None while it is away."""
        return next((reader for reader in readers if self.is_(reader)), None)
