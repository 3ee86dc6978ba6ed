"""The table of README.md, made from the committed results in ``bench/baselines/``.  Pure.

Caller: ``bench.results.report_file``.  A baseline is a result file with ``ratios``: ``FIGURE_vs_PROGRAM`` is the
broker's figure divided by that program's, any other name is a figure of the broker as it is; and with ``targets``.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from bench.results.text import machine_line

BEGIN: Final = "<!-- bench: begin; written by `python -m bench report --readme` -->"
END: Final = "<!-- bench: end -->"
BETWEEN: Final = "_vs_"


class NoMarkers(Exception):
    """The text does not have both markers, once and in their order."""


def tables(documents: Sequence[Mapping[str, Any]]) -> str:
    """One table for each document with ratios, in the order given: a column for each program, a row for each figure.

    Empty when there is none.
    """
    return "\n\n".join(_table(document) for document in documents if document["ratios"])


def _table(document: Mapping[str, Any]) -> str:
    ratios: Mapping[str, float] = document["ratios"]
    pairs = {name: name.split(BETWEEN, 1) for name in ratios if BETWEEN in name}
    figures = list(dict.fromkeys(figure for figure, _ in pairs.values()))
    programs = list(dict.fromkeys(program for _, program in pairs.values()))
    parts = []
    if pairs:
        lines = [_line(["broker's figure / that of", *programs]), _line(["---"] * (len(programs) + 1))]
        lines += [_line([figure, *(_cell(ratios.get(f"{figure}{BETWEEN}{program}")) for program in programs)])
                  for figure in figures]  # fmt: skip
        parts.append("\n".join(lines))
    plain = [f"{name} {_cell(value)}" for name, value in ratios.items() if name not in pairs]
    if plain:
        parts.append(f"Of the broker alone: {', '.join(plain)}.")
    targets = document["targets"]
    missed = [f"`{target['bound']}`" for target in targets if not target["holds"]]
    if targets:
        parts.append(f"Targets that hold: {len(targets) - len(missed)} of {len(targets)}"
                     + (f"; missed: {', '.join(missed)}." if missed else "."))  # fmt: skip
    parts.append(
        f"`python -m bench {document['bench']}`, {document['started'][:10]}, {machine_line(document['host'])}."
    )
    return "\n\n".join(parts)


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _line(cells: Sequence[str]) -> str:
    shown = [cell.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ") for cell in cells]
    return f"| {' | '.join(shown)} |"


def replaced(text: str, between: str) -> str:
    """``text`` with ``between`` between its markers, nothing when that is empty.  Raises ``NoMarkers``."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(END) < text.index(BEGIN):
        raise NoMarkers(f"there must be one line {BEGIN!r} and below it one line {END!r}")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    lines = f"{between}\n" if between else ""
    return f"{before}{BEGIN}\n{lines}{END}{after}"
