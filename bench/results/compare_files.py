"""``compare A.json B.json``: how much each figure has moved, and whether by too much.

Caller: ``bench.__main__``.
"""

import argparse
import re
import sys
from pathlib import Path
from typing import Final

from bench.results import comparison
from bench.results.comparison import Limit
from bench.results.document import read

NAME: Final = "compare"
SUMMARY: Final = "two result files: the change of each figure, and whether it is too much"
DESCRIPTION: Final = """\
Prints each figure of both files, the change from A to B, and the interval in which it lies in 95 of 100 bootstrap
resamplings.  Samples of one run are not independent of each other: the truth is wider than that interval.  Ratios of
`peers` are compared as they are.  Exits 99 when a --fail-on or --fail-on-targets is broken, 2 when a file is no result
or the two do not fit together.
"""
EXIT_BROKEN: Final = 99
PERCENT: Final = re.compile(r"[0-9]{1,4}(?:\.[0-9]{1,3})?")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of this sub-command."""
    parser.add_argument("first", type=Path, metavar="A.json", help="before")
    parser.add_argument("second", type=Path, metavar="B.json", help="after")
    parser.add_argument("--fail-on", type=_limit, action="append", default=[], metavar="LIMIT",
                        help="for example 'ttft_p95:+10%%', 'turns_per_second:-5%%' or 'burst_vs_websocketd:+15%%'; "
                             "repeatable")  # fmt: skip
    parser.add_argument("--fail-on-targets", type=_share, metavar="PERCENT",
                        help="every ratio that has a target may be worse by so much, for example 15%%: larger where "
                             "the target is an upper bound, smaller where it is a lower one")  # fmt: skip
    parser.add_argument("--seed", type=int, default=1, help="of the resampling (default %(default)s)")


def _limit(text: str) -> Limit:
    try:
        return Limit.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _share(text: str) -> float:
    words = text.strip().removesuffix("%")
    if PERCENT.fullmatch(words) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form 15%")
    return float(words) / 100


def run(arguments: argparse.Namespace) -> int:
    """Print the comparison; returns the exit code.  Raises ``NoResult``, ``Unfit``, ``OSError``."""
    first, second = read(arguments.first), read(arguments.second)
    found, limits = comparison.rows(first, second, arguments.seed, arguments.fail_on), list(arguments.fail_on)
    missing: list[str] = []
    if arguments.fail_on_targets is not None:
        wanted, missing = comparison.target_limits(first, second, arguments.fail_on_targets)
        limits += wanted
    print(comparison.text(found))
    for line in comparison.differing(first, second):
        print(f"  differs: {line}")
    for name in missing:
        print(f"  has a target and is not in both: {name}")
    broken = comparison.broken(found, limits)
    for line in broken:
        print(f"fail-on: {line}", file=sys.stderr)
    return EXIT_BROKEN if broken else 0
