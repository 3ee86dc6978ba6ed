"""The table of README.md, made from the committed results in ``bench/baselines/``.  Pure.

Caller: ``bench.results.report_file``.  A baseline is a result file whose subjects are the programs that the broker was
compared with, each with ``ratios``: what was compared -> the broker's figure divided by that program's.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from bench.results.text import machine_line

BEGIN: Final = "<!-- bench: begin; written by `python -m bench report --readme` -->"
END: Final = "<!-- bench: end -->"
NOTHING: Final = "No comparison has been recorded yet."


class NoMarkers(Exception):
    """The text does not have both markers, once and in their order."""


def tables(documents: Sequence[Mapping[str, Any]]) -> str:
    """One table for each document with ratios, in the order given: a column for each program, a row for each figure."""
    found = [_table(document) for document in documents if any(subject["ratios"] for subject in document["subjects"])]
    return "\n\n".join(found) if found else NOTHING


def _table(document: Mapping[str, Any]) -> str:
    subjects = [subject for subject in document["subjects"] if subject["ratios"]]
    figures = list(dict.fromkeys(figure for subject in subjects for figure in subject["ratios"]))
    head = [f"broker / other program, {document['bench']}", *(subject["name"] for subject in subjects)]
    lines = [_line(head), _line(["---"] * len(head))]
    for figure in figures:
        values = [subject["ratios"].get(figure) for subject in subjects]
        lines.append(_line([figure, *("-" if value is None else f"{value:.2f}" for value in values)]))
    date = document["started"][:10]
    return "\n".join([*lines, "", f"Smaller is better. {date}, {machine_line(document['host'])}."])


def _line(cells: Sequence[str]) -> str:
    shown = [cell.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ") for cell in cells]
    return f"| {' | '.join(shown)} |"


def replaced(text: str, between: str) -> str:
    """``text`` with ``between`` between its markers.  Raises ``NoMarkers``."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(END) < text.index(BEGIN):
        raise NoMarkers(f"there must be one line {BEGIN!r} and below it one line {END!r}")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{between}\n{END}{after}"
