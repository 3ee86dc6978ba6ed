"""``report RUN.json``: the table again, a page, or the table of README.md.

Caller: ``bench.__main__``.
"""

import argparse
import sys
from pathlib import Path
from typing import Final

from bench.results import readme
from bench.results.document import read
from bench.results.page import page_of
from bench.results.text import text_of

NAME: Final = "report"
SUMMARY: Final = "a result file again: as a table, as one HTML page, as the table of README.md"
DESCRIPTION: Final = """\
Prints the table of RUN.json again, or writes one page with charts that needs nothing else (--html).  --readme writes
the table between the two markers of README.md, from all of bench/baselines/*.json; with --check it writes nothing and
exits 99 when the two differ; without a baseline there is to be nothing between the markers.
"""
ROOT: Final = Path(__file__).resolve().parents[2]
BASELINES: Final = ROOT / "bench" / "baselines"
README: Final = ROOT / "README.md"
EXIT_DIFFERS: Final = 99
EXIT_MISTAKE: Final = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of this sub-command."""
    parser.add_argument("run", nargs="?", type=Path, metavar="RUN.json", help="a result file")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the page there")
    parser.add_argument("--readme", action="store_true", help="write the table of README.md")
    parser.add_argument("--check", action="store_true", help="with --readme: compare, write nothing")
    parser.add_argument("--readme-file", type=Path, default=README, metavar="FILE", help=argparse.SUPPRESS)
    parser.add_argument("--baselines", type=Path, default=BASELINES, metavar="DIR", help=argparse.SUPPRESS)


def run(arguments: argparse.Namespace) -> int:
    """Returns the exit code.  Raises ``NoResult``, ``NoMarkers``, ``OSError``."""
    is_mistaken = arguments.run is not None if arguments.readme else arguments.run is None or arguments.check
    if is_mistaken or (arguments.readme and arguments.html is not None):
        print("bench: report needs RUN.json, or --readme without one; --check is for --readme", file=sys.stderr)
        return EXIT_MISTAKE
    if arguments.readme:
        return _readme(arguments.readme_file, arguments.baselines, is_check=arguments.check)
    document = read(arguments.run)
    if arguments.html is None:
        print(text_of(document))
    else:
        _write(arguments.html, page_of(document))
    return 0


def _readme(path: Path, folder: Path, *, is_check: bool) -> int:
    before = path.read_text()
    after = readme.replaced(before, readme.tables([read(file) for file in sorted(folder.glob("*.json"))]))
    if before == after:
        return 0
    if is_check:
        print(f"bench: {path.name} and {folder.name}/ differ: python -m bench report --readme", file=sys.stderr)
        return EXIT_DIFFERS
    _write(path, after)
    return 0


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    part.replace(path)
