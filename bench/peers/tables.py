"""The tables of a run: one for each scenario, a line for each load and subject.  Pure.

Caller: ``bench.peers.command``.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from bench.peers.figures import Figures
from bench.peers.job import Kind
from bench.peers.judgement import COMPARISONS, PEERS
from bench.peers.scenario import Load, Scenario
from bench.peers.subject import Subject
from bench.ratios import number
from bench.table import table

COLUMNS: Final[dict[Kind, dict[str, str]]] = {
    Kind.BURST: {"CPU us/frame": "cpu_us", "frames/s": "frames_per_s", "receiver us/frame": "receiver_us"},
    Kind.PACED: {
        "CPU us/frame": "cpu_us", "frames/s": "frames_per_s", "p50 ms": "p50_ms", "p99 ms": "p99_ms",
        "added p50": "added_p50_ms", "added p99": "added_p99_ms", "added mean": "added_mean_ms",
        "receiver us/frame": "receiver_us",
    },
    Kind.CONNECT: {
        "first frame p50 ms": "connect_p50_ms", "p99 ms": "connect_p99_ms", "CLI's first p50 ms": "cli_frame_p50_ms",
        "first delta p50 ms": "first_delta_p50_ms",
    },
    Kind.MEMORY: {"KiB/connection": "memory_kib"},
    Kind.HANDSHAKES: {"per second": "handshakes_per_s", "CPU us each": "cpu_us"},
}  # fmt: skip


def tables(
    loads: Sequence[Load],
    medians: Mapping[tuple[str, Subject], Figures],
    bounds: Mapping[tuple[str, Subject], Sequence[str]],
) -> list[str]:
    """A table, with its title, for each scenario that was measured.  ``bounds``: what rounds were bound by."""
    found = []
    for scenario in Scenario:
        chosen = [load for load in loads if load.scenario is scenario]
        rows = [
            _row(load, subject, medians[load.name, subject], bounds.get((load.name, subject), ()))
            for load in chosen
            for subject in load.subjects
            if (load.name, subject) in medians
        ]
        if rows:
            head = ["subject", "load", *COLUMNS[chosen[0].kind], "bound by"]
            found.append(f"\n{scenario.value}\n{table(head, rows)}")
    return found


def ratio_table(ratios: Mapping[str, float]) -> str | None:
    """The broker's figures by those of each peer; None where there are none."""
    peers = [peer for peer in PEERS if any(name.endswith(f"_vs_{peer.value}") for name in ratios)]
    rows = []
    for name, load, figure, _ in COMPARISONS:
        found = [ratios.get(f"{name}_vs_{peer.value}") for peer in peers]
        if any(value is not None for value in found):
            rows.append([name, f"{load} {figure}", *("-" if value is None else number(value) for value in found)])
    head = ["ratio", "of", *(f"_vs_{peer.value}" for peer in peers)]
    return f"\nbroker by peer\n{table(head, rows)}" if rows else None


def _row(load: Load, subject: Subject, found: Figures, bounds: Sequence[str]) -> list[str]:
    cells = [number(found[name]) if name in found else "-" for name in COLUMNS[load.kind].values()]
    return [subject.value, load.title, *cells, ", ".join(bounds)]
