"""A result as tables in plain text: what a run prints, and ``report FILE`` again.  Pure.

Callers: ``bench.report``, ``bench.results.report_file``.  It reads the document, so that nothing is printed that
the file does not hold.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from bench.samples import COLUMNS
from bench.table import milliseconds, table

SHORT: Final = 4
"""A fact of more values than this is a table of its own."""
LINES: Final = 60
"""Of a timeline."""
BOUND: Final = "GENERATOR-BOUND: these figures are of the generator, not of the broker"
CURVE: Final = ("ttft_p50", "ttft_p95", "turn_p95")
"""Figures of each point of a curve, in milliseconds."""


def text_of(document: Mapping[str, Any]) -> str:
    """The head, a table for each subject (for a sweep one of its points), facts, what must not be."""
    host = document["host"]
    load = f"load {host['load_before'][0]} -> {host['load_after'][0]}"
    parts = [f"{_title(document)}  {document['started']}  {machine_line(host)}  {load}"]
    if document.get("interrupted"):
        parts.append("INTERRUPTED: what was measured until then")
    curve = document.get("curve")
    if curve is not None:
        parts.append(curve_text(curve))
    else:
        for subject in document["subjects"]:
            parts += _subject(subject)
    parts += document["tables"]
    parts += [_target(target) for target in document.get("targets", ())]
    parts += [f"  note: {line}" for line in document["notes"]]
    parts += [f"  VIOLATION {line}" for line in document["violations"]]
    return "\n".join(parts)


def _target(target: Mapping[str, Any]) -> str:
    return f"  target {target.get('verdict') or target['bound']}"


def _title(document: Mapping[str, Any]) -> str:
    label = document.get("label")
    return f"{document['bench']} ({label})" if label else str(document["bench"])


def machine_line(host: Mapping[str, Any]) -> str:
    """The host of a document in a few words."""
    return f"{host['cores']} cores {host['cpu']}, Linux {host['kernel']}, Python {host['python']}"


def _subject(subject: Mapping[str, Any]) -> Iterator[str]:
    yield f"\n{subject['name']} (milliseconds)"
    rows = [row(name, series) for name, series in subject["series"].items()]
    yield table(("series", "what", "n", *COLUMNS), rows)
    if subject.get("shows_intervals"):
        yield timeline(subject["intervals"])
    for reason in subject.get("generator_bound", ()):
        yield f"  {BOUND}: {reason}"
    yield from map(_target, subject["targets"])
    for name, value in subject["facts"].items():
        yield _fact(name, value)


def timeline(intervals: Sequence[Mapping[str, Any]]) -> str:
    """The intervals one below the other; of many an even choice."""
    step = max(1, -(-len(intervals) // LINES))
    rows = [
        (
            f"{line['t']:.1f}", str(line.get("rate", "-")), str(line["sessions"]), str(line["turns"]),
            str(line["failures"]), cell(line.get("ttft_p50")), cell(line.get("ttft_p95")),
        )
        for line in intervals[::step]
    ]  # fmt: skip
    return "\n" + table(("seconds", "rate", "sessions", "turns", "failures", "ttft_p50", "ttft_p95"), rows) + "\n"


def row(name: str, series: Mapping[str, Any]) -> tuple[str, ...]:
    """One line of the table; a dash for what was not measured."""
    cells = [cell(series.get(column)) for column in COLUMNS]
    return (name, str(series.get("title", "")), str(series["n"]), *cells)


def cell(value: float | None) -> str:
    """Milliseconds."""
    return "-" if value is None else milliseconds(value / 1e3)


def _fact(name: str, value: object) -> str:
    if not isinstance(value, dict):
        return f"  {name}: {value}"
    if len(value) <= SHORT:
        return f"  {name}: " + ", ".join(f"{k} {v}" for k, v in value.items())
    return "\n" + table((name, ""), [(str(k), str(v)) for k, v in value.items()])


def curve_text(curve: Mapping[str, Any]) -> str:
    """The points of a sweep, what each was judged by, and the knee."""
    head = (curve["parameter"], "turns/s", "failed", *CURVE, "generator", "bounds")
    rows = []
    for point in curve["points"]:
        figures = point["figures"]
        rows.append((
            f"{point['value']:g}", f"{point['turns_per_second']:.1f}", f"{point['failed']:.2%}",
            *(cell(figures.get(name)) for name in CURVE),
            "bound" if point["generator_bound"] else "ok",
            "hold" if point["holds"] else "; ".join(point["broken"]),
        ))  # fmt: skip
    return "\n".join([table(head, rows), "", *(f"  {line}" for line in curve["told"])])
