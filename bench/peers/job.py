"""What the receiver is asked for, and what it hands back: JSON in files, as it is another process.

Callers: ``bench.peers.command`` (writes jobs, reads results), ``bench.peers.receiver`` (the reverse).
"""

from enum import StrEnum

from msgspec import Struct


class Kind(StrEnum):
    """What the receiver does."""

    BURST = "burst"
    """One message to each session, from before it is sent to the end of its turn."""
    PACED = "paced"
    """Lines at a pace in every session, a window of their time."""
    CONNECT = "connect"
    """One connection after another: to the first frame, the first of the CLI's own, the first delta."""
    MEMORY = "memory"
    """Connections that stay: memory of the server before and after."""
    HANDSHAKES = "handshakes"
    """Connections that come and go."""


class Target(Struct, frozen=True, forbid_unknown_fields=True):
    """How a subject is reached."""

    pid: int | None = None
    """The server, whose time and memory count; None where there is none."""
    port: int = 0
    """0: there is no server, ``argv`` is started on pipes."""
    argv: tuple[str, ...] = ()
    environ: dict[str, str] = {}
    subprotocol: str = ""
    hello: str = ""
    """The first message of each connection, where the server wants one."""
    goodbye: str = ""
    """The last one, which makes the server end the process."""


class Job(Struct, frozen=True, forbid_unknown_fields=True):
    """One measurement."""

    kind: Kind
    target: Target
    say: str = ""
    """What each session sends once it is open; nothing: it stays silent."""
    warm_up: str = ""
    """What is sent before, and answered, of a burst: its process has started by then."""
    sessions: int = 1
    at_once: int = 8
    """How many connections are being opened at a time."""
    rate: float = 0.0
    """Lines per second and session, of paced ones."""
    settle_s: float = 0.0
    """Between the last session's first line and the window."""
    window_s: float = 0.0
    deadline_s: float = 60.0
    """For all of it."""


class Measured(Struct, kw_only=True, forbid_unknown_fields=True):
    """What one measurement gave; what a kind does not measure keeps its default."""

    frames: int = 0
    """Frames that were delivered in the window (burst: all of the server's, paced: the poured ones)."""
    expected: float = 0.0
    """Frames that a pace asked for."""
    wall_s: float = 0.0
    server_cpu_s: float | None = None
    receiver_cpu_s: float = 0.0
    generator_cpu_s: float = 0.0
    """Of the processes that write the lines, all together."""
    busiest_generator: float = 0.0
    """Share of a core that the busiest of them has used."""
    machine_busy: float = 0.0
    """Share of all cores in use, by whomever."""
    lag_p99_ms: float = 0.0
    """How late the receiver's own loop runs what is due."""
    latency_ms: dict[str, float] = {}
    """p50, p99, mean and max of write to receipt."""
    connect_ms: list[float] = []
    """Connect to the first frame: the broker's is its welcome, the process is bound by then."""
    cli_frame_ms: list[float] = []
    """Connect to the first frame that the CLI itself wrote, in answer to a message sent at once."""
    first_delta_ms: list[float] = []
    """Connect to the first delta."""
    memory_bytes: int = 0
    """By how much the server has grown."""
    connections: int = 0
    """That it was asked to hold, or that came and went."""
