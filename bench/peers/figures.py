"""Figures of one measurement, and what it was bound by.  Pure.

Callers: ``bench.peers.judgement``, ``bench.peers.tables``.
"""

import statistics
from collections.abc import Sequence
from typing import Final

from bench.peers.job import Kind, Measured
from bench.samples import Samples

Figures = dict[str, float]

BUSY_CORE: Final = 0.9
"""Share of a core from which on a process of one thread is the limit."""
BUSY_MACHINE: Final = 0.97
BEHIND: Final = 0.98
"""Share of the frames that a pace asked for."""
LAG_MS: Final = 20.0


def figures(kind: Kind, measured: Measured, floor: Measured | None) -> Figures:
    """What one measurement says; ``floor``: the same over direct pipes, in the same round.

    Microseconds (``_us``), milliseconds (``_ms``), kibibytes (``_kib``) and counts per second (``_per_s``).
    """
    match kind:
        case Kind.BURST:
            return _of_frames(measured)
        case Kind.PACED:
            return _of_frames(measured) | _of_latency(measured, floor)
        case Kind.CONNECT:
            return _of_starts(measured)
        case Kind.MEMORY:
            return {"memory_kib": measured.memory_bytes / 1024 / max(1, measured.connections)}
        case Kind.HANDSHAKES:
            found = {"handshakes_per_s": measured.connections / measured.wall_s}
            if measured.server_cpu_s is not None:
                found["cpu_us"] = measured.server_cpu_s * 1e6 / max(1, measured.connections)
            return found


def medians(rounds: Sequence[Figures]) -> Figures:
    """The median of each figure over the rounds that have it."""
    names = dict.fromkeys(name for found in rounds for name in found)
    return {name: statistics.median(found[name] for found in rounds if name in found) for name in names}


def bound_by(kind: Kind, measured: Measured) -> list[str]:
    """What else than the server the figures may be of: then its throughput and its delays are not its own."""
    found = []
    receiver = measured.receiver_cpu_s / measured.wall_s if measured.wall_s else 0.0
    if measured.busiest_generator >= BUSY_CORE:
        found.append("the generator")
    if receiver >= BUSY_CORE or (kind is Kind.PACED and measured.lag_p99_ms > LAG_MS):
        found.append("the receiver")
    if measured.expected and measured.frames < BEHIND * measured.expected:
        found.append("a pace that was not kept")
    if kind is Kind.PACED and measured.machine_busy >= BUSY_MACHINE:
        found.append("the machine")
    return found


def _of_frames(measured: Measured) -> Figures:
    frames = max(1, measured.frames)
    found = {"frames_per_s": measured.frames / measured.wall_s}
    if measured.server_cpu_s is not None:
        found["cpu_us"] = measured.server_cpu_s * 1e6 / frames
    return found | {"receiver_us": measured.receiver_cpu_s * 1e6 / frames}


def _of_latency(measured: Measured, floor: Measured | None) -> Figures:
    found = {f"{name}_ms": value for name, value in measured.latency_ms.items()}
    if floor is not None and floor is not measured:
        for name in ("p50", "p99", "mean"):
            if name in measured.latency_ms and name in floor.latency_ms:
                found[f"added_{name}_ms"] = measured.latency_ms[name] - floor.latency_ms[name]
    return found


def _of_starts(measured: Measured) -> Figures:
    found: Figures = {}
    for name, values in (
        ("connect", measured.connect_ms),
        ("cli_frame", measured.cli_frame_ms),
        ("first_delta", measured.first_delta_ms),
    ):
        if values:
            samples = Samples(values)
            found |= {f"{name}_p50_ms": samples.percentile(50), f"{name}_p99_ms": samples.percentile(99)}
    return found
