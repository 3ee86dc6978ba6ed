"""A result as one page: tables and charts, nothing to load, nothing to run.  Pure.

Caller: ``bench.results.report_file``.  Whatever stands in the file, a label or the name of a series, is escaped; the
page forbids its reader's browser every request.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any, Final

from bench.results.svg import Chart, Line, curve_of, drawn
from bench.results.text import BOUND, CURVE, cell, machine_line
from bench.samples import COLUMNS, Samples

SHOWN: Final = (("ttft", "a"), ("ttft_service", "b"), ("server_ttft", "c"), ("attached", "d"))
"""Series in the charts, and their colours."""
QUANTILES: Final = (0, 10, 25, 50, 75, 90, 95, 97.5, 99, 99.5, 99.9, 99.95, 99.99)
NINES: Final = (0, 50, 90, 99, 99.9, 99.99)
STEPS: Final = 200
"""Of the distribution."""
_NOT_XML: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
STYLE: Final = """
:root{color-scheme:light dark;--ink:#1b1f24;--pale:#d0d7de;--back:#fff;--a:#0969da;--b:#bf5700;--c:#1a7f37;--d:#8250df;
--bad:#cf222e}
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--pale:#3d444d;--back:#0d1117;--a:#58a6ff;--b:#f0883e;--c:#3fb950;
--d:#bc8cff;--bad:#ff7b72}}
body{font:14px/1.5 system-ui,sans-serif;max-width:1000px;margin:2rem auto;padding:0 1rem;color:var(--ink);
background:var(--back)}
table{border-collapse:collapse;margin:1rem 0;font-variant-numeric:tabular-nums;display:block;overflow-x:auto}
td,th{padding:.15rem .6rem;text-align:right;border-bottom:1px solid var(--pale)}
td:first-child,th:first-child,td:nth-child(2),th:nth-child(2){text-align:left}
figure{margin:1.5rem 0}figcaption{font-weight:600}svg{width:100%;height:auto}
svg text{font-size:11px;fill:var(--ink)}.axis{stroke:var(--ink);fill:none}.grid{stroke:var(--pale);fill:none}
.line{fill:none;stroke-width:1.6}.a{stroke:var(--a)}.b{stroke:var(--b)}.c{stroke:var(--c)}.d{stroke:var(--d)}
circle{fill:var(--back);stroke-width:1.6}.bar{stroke:var(--bad);stroke-width:2}.mark{stroke:var(--ink);stroke-dasharray:4}
.warn{color:var(--bad);font-weight:600}
"""


def page_of(document: Mapping[str, Any]) -> str:
    """The whole page; well-formed as XML, too."""
    title = " ".join(filter(None, ("bench", document["bench"], document["label"])))
    parts = [f"<h1>{escape(title)}</h1>", f"<p>{escape(_when(document))}</p>"]
    if document["interrupted"]:
        parts.append('<p class="warn">Interrupted: what was measured until then.</p>')
    parts += [f'<p class="warn">{escape(line)}</p>' for line in document["violations"]]
    curve = document.get("curve")
    if curve:
        parts += _curve(curve)
    is_long = len(document["subjects"]) > 1
    for subject in document["subjects"]:
        inside = "\n".join(_subject(subject))
        name = escape(subject["name"])
        parts.append(
            f"<details><summary>{name}</summary>\n{inside}</details>" if is_long else f"<h2>{name}</h2>\n{inside}"
        )
    parts += [f"<pre>{escape(one)}</pre>" for one in document["tables"]]
    parts += [f"<p>{escape(target['verdict'] or target['bound'])}</p>" for target in document.get("targets", ())]
    parts += [f"<p>{escape(line)}</p>" for line in document["notes"]]
    parts += ["<h2>Run</h2>", _pairs({**document["flags"], "seed": document["seed"]}), _pairs(document["versions"]),
              f"<p><code>{escape(' '.join(document['command']))}</code></p>"]  # fmt: skip
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    page = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )
    return _NOT_XML.sub("\ufffd", page)


def _when(document: Mapping[str, Any]) -> str:
    host = document["host"]
    load = f"load {host['load_before'][0]} before, {host['load_after'][0]} after"
    return f"{document['started']}; {machine_line(host)}; {load}"


def _subject(subject: Mapping[str, Any]) -> Iterator[str]:
    for reason in subject["generator_bound"]:
        yield f'<p class="warn">{escape(BOUND)}: {escape(reason)}</p>'
    rows = [
        [name, series["title"], str(series["n"]), *(cell(series.get(column)) for column in COLUMNS)]
        for name, series in subject["series"].items()
    ]
    yield _table(["series (ms)", "what", "n", *COLUMNS], rows)
    measured = [(name, kind, Samples(subject["series"][name]["samples"])) for name, kind in SHOWN
                if subject["series"].get(name, {}).get("samples")]  # fmt: skip
    if measured:
        yield drawn(_percentiles(measured))
        yield drawn(_distribution(measured))
    if subject["intervals"]:
        yield drawn(_timeline(subject["intervals"]))
    yield _pairs(subject["facts"])


def _percentiles(measured: Sequence[tuple[str, str, Samples]]) -> Chart:
    most = max(len(samples) for _, _, samples in measured)
    # A percentile beyond 1 in n is the maximum again: the line ends there.
    reached = [q for q in QUANTILES if (100 - q) * most >= 100 - 1e-6]
    lines = [Line(name, kind, curve_of(samples.percentile, reached)) for name, kind, samples in measured]
    marks = [(-math.log10(1 - q / 100), f"p{q:g}") for q in NINES if q <= reached[-1]]
    return Chart("Percentiles of the time to the first delta", "percentile", "ms", lines, x_ticks=marks)


def _distribution(measured: Sequence[tuple[str, str, Samples]]) -> Chart:
    lines = []
    for name, kind, samples in measured:
        ordered = samples.ordered()
        step = max(1, len(ordered) // STEPS)
        points = [(ordered[at], 100 * (at + 1) / len(ordered)) for at in range(0, len(ordered), step)]
        lines.append(Line(name, kind, [*points, (ordered[-1], 100.0)]))
    return Chart("Distribution of the time to the first delta", "ms", "% at most", lines)


def _timeline(intervals: Sequence[Mapping[str, Any]]) -> Chart:
    lines = [
        Line(f"ttft_{name}", kind, [(line["t"], line[f"ttft_{name}"]) for line in intervals
                                    if line.get(f"ttft_{name}") is not None])
        for name, kind in (("p95", "a"), ("p50", "b"))
    ]  # fmt: skip
    failures = [(line["t"], float(line["failures"])) for line in intervals]
    most = max(count for _, count in failures)
    has_failures = most > 0
    return Chart(
        "Over time", "seconds", "ms", lines, bars=failures if has_failures else [],
        bars_label=f"failures (at most {most:g})",
    )  # fmt: skip


def _curve(curve: Mapping[str, Any]) -> Iterator[str]:
    kinds = dict(zip(CURVE, "bac", strict=True))
    lines = [
        Line(name, kinds[name], [(point["value"], point["figures"][name]) for point in curve["points"]
                                 if name in point["figures"]])
        for name in CURVE
    ]  # fmt: skip
    marks = [] if curve["knee"] is None else [(curve["knee"], f"knee {curve['knee']:g}")]
    yield drawn(Chart("Latency by load", curve["parameter"], "ms", lines, marks=marks))
    head = [curve["parameter"], "bounds", "turns/s", "failed", *CURVE, "generator"]
    rows = [
        [
            f"{point['value']:g}", "hold" if point["holds"] else "; ".join(point["broken"]),
            f"{point['turns_per_second']:.1f}", f"{point['failed']:.2%}",
            *(cell(point["figures"].get(name)) for name in CURVE), "bound" if point["generator_bound"] else "ok",
        ]
        for point in curve["points"]
    ]  # fmt: skip
    yield _table(head, rows)
    yield from (f"<p>{escape(line)}</p>" for line in curve["told"])


def _pairs(values: Mapping[str, Any]) -> str:
    rows = [[name, _words(value)] for name, value in values.items()]
    return _table(["", ""], rows) if rows else ""


def _words(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {one}" for name, one in value.items())
    return str(value)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{escape(word)}</th>" for word in head)
    body = "\n".join(f"<tr>{''.join(f'<td>{escape(word)}</td>' for word in line)}</tr>" for line in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>\n{body}\n</tbody></table>"
