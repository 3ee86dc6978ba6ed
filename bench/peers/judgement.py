"""Ratios of the broker to its peers, and the targets that they are held against.  Pure.

A ratio is made within a round, where both met the same machine, and the median of the rounds is told.
Caller: ``bench.peers.command``.
"""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from bench.peers.figures import Figures
from bench.peers.subject import Subject
from bench.ratios import RatioBound

Results = Mapping[tuple[str, Subject], Sequence[Figures]]
"""By load and subject: the figures of each round."""


SERVERS: Final = (Subject.WEBSOCKETD, Subject.PLAIN)
ALL: Final = (Subject.DIRECT, *SERVERS)
PEERS: Final = (*ALL, Subject.LIMIT)


class Comparison(NamedTuple):
    """The broker's figure of a load over that of each peer that has one: ``NAME_vs_PEER``."""

    name: str
    load: str
    figure: str
    peers: tuple[Subject, ...] = SERVERS


COMPARISONS: Final = (
    Comparison("burst", "burst", "cpu_us"),
    Comparison("burst_rate", "burst", "frames_per_s", ALL),
    Comparison("paced", "paced", "cpu_us", (*SERVERS, Subject.LIMIT)),
    Comparison("paced_added_mean", "paced", "added_mean_ms", (*SERVERS, Subject.LIMIT)),
    Comparison("paced_added_p50", "paced", "added_p50_ms", (*SERVERS, Subject.LIMIT)),
    Comparison("paced_added_p99", "paced", "added_p99_ms", (*SERVERS, Subject.LIMIT)),
    Comparison("latency_added_mean", "latency", "added_mean_ms"),
    Comparison("latency_added_p50", "latency", "added_p50_ms"),
    Comparison("latency_added_p99", "latency", "added_p99_ms"),
    Comparison("connect", "connect", "connect_p50_ms", ALL),
    Comparison("connect_p99", "connect", "connect_p99_ms", ALL),
    Comparison("cli_frame", "connect", "cli_frame_p50_ms", ALL),
    Comparison("first_delta", "connect", "first_delta_p50_ms", ALL),
    Comparison("memory", "memory", "memory_kib"),
)
SPREAD: Final = "spread_"
GROWTHS: Final = {"spread_cpu": "cpu_us", "spread_p99": "p99_ms"}
"""The largest value of any spread over the value of the fewest sessions."""
PLAIN_NUMBERS: Final = {"idle_kib": ("idle", "memory_kib"), "handshakes_per_s": ("handshakes", "handshakes_per_s")}
"""The broker's figure as it is."""
NAMES: Final = frozenset(
    {f"{comparison.name}_vs_{peer.value}" for comparison in COMPARISONS for peer in comparison.peers}
    | GROWTHS.keys()
    | PLAIN_NUMBERS.keys()
)
TARGETS: Final = tuple(
    RatioBound.parse(text)
    for text in (
        "burst_vs_websocketd <= 0.3", "paced_vs_websocketd <= 0.85", "paced_vs_limit <= 2",
        "latency_added_p50_vs_websocketd <= 0.8", "latency_added_p99_vs_websocketd <= 1",
        "paced_added_p50_vs_websocketd <= 0.8", "paced_added_p99_vs_websocketd <= 1",
        "connect_vs_websocketd <= 0.1", "idle_kib <= 32", "spread_cpu <= 1.5", "spread_p99 <= 1.5",
        "handshakes_per_s >= 1000",
    )
)  # fmt: skip


def ratios(results: Results) -> dict[str, float]:
    """Every ratio that the results allow, by its name."""
    found: dict[str, float] = {}
    for name, load, figure, peers in COMPARISONS:
        ours = results.get((load, Subject.BROKER), ())
        for peer in peers:
            theirs = results.get((load, peer), ())
            _put(found, f"{name}_vs_{peer.value}", (_ratio(a, b, figure) for a, b in zip(ours, theirs, strict=False)))
    spreads = _spreads(results)
    for name, figure in GROWTHS.items():
        if len(spreads) > 1:
            _put(found, name, _growths(spreads, figure))
    for name, (load, figure) in PLAIN_NUMBERS.items():
        _put(found, name, (one.get(figure) for one in results.get((load, Subject.BROKER), ())))
    return found


def targets(loads: Iterable[str], subjects: Iterable[Subject]) -> list[RatioBound]:
    """The targets that a run of these loads and subjects is to be held against."""
    names, peers = set(loads), {subject.value for subject in subjects}
    if Subject.BROKER.value not in peers:
        return []
    chosen: Callable[[RatioBound], bool] = lambda target: _is_measured(target.series, names, peers)  # noqa: E731
    return [target for target in TARGETS if chosen(target)]


def _is_measured(name: str, loads: set[str], peers: set[str]) -> bool:
    if name in PLAIN_NUMBERS:
        return PLAIN_NUMBERS[name][0] in loads
    if name in GROWTHS:
        return sum(load.startswith(SPREAD) for load in loads) > 1
    first, _, peer = name.partition("_vs_")
    load = next(comparison.load for comparison in COMPARISONS if comparison.name == first)
    needs_floor = "_added_" in first
    return load in loads and peer in peers and (Subject.DIRECT.value in peers or not needs_floor)


def _ratio(ours: Figures, theirs: Figures, figure: str) -> float | None:
    """None where one of them has none above zero: what is added to the floor then drowns in noise."""
    one, other = ours.get(figure, 0.0), theirs.get(figure, 0.0)
    return one / other if one > 0.0 and other > 0.0 else None


def _spreads(results: Results) -> list[Sequence[Figures]]:
    """The rounds of each spread, the fewest sessions first."""
    found = {
        int(load.removeprefix(SPREAD)): rounds
        for (load, subject), rounds in results.items()
        if load.startswith(SPREAD) and subject is Subject.BROKER
    }
    return [found[sessions] for sessions in sorted(found)]


def _growths(spreads: Sequence[Sequence[Figures]], figure: str) -> Iterable[float | None]:
    for first, *others in zip(*spreads, strict=False):
        found = [ratio for other in others if (ratio := _ratio(other, first, figure)) is not None]
        yield max(found, default=None)


def _put(found: dict[str, float], name: str, values: Iterable[float | None]) -> None:
    there = [value for value in values if value is not None]
    if there:
        found[name] = statistics.median(there)
