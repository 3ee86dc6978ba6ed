"""``python -m bench COMMAND``: read the arguments, run one question, print its table, judge the assertions.

Exit codes: 0 measured; 1 something failed while measuring, or was found that must not be; 2 a mistake in the arguments,
or a file that is no result; 69 no CLI, or no namespace for the real one; 99 an assertion does not hold; 130 interrupted
(what was started is ended, and what was measured printed, first).
"""

import argparse
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol

from bench import (
    binding,
    churn,
    clis,
    cold_vs_warm,
    connect,
    crowd,
    idle,
    namespace,
    ramp,
    run,
    soak,
    spawn_stall,
    sweep,
)
from bench.bounds import Bound
from bench.chaos import command as chaos
from bench.children import ChildFailed
from bench.direct import DirectFailed
from bench.peers import command as peers
from bench.ratios import RatioBound
from bench.report import Report
from bench.results import compare_files, report_file
from bench.results.comparison import Unfit
from bench.results.document import NoResult
from bench.results.readme import NoMarkers
from bench.tenant import TenantFailed
from broker.errors import CliMissing

EXIT_FAILED: Final = 1
EXIT_MISTAKE: Final = 2
EXIT_UNAVAILABLE: Final = 69
EXIT_ASSERTION: Final = 99
EXIT_INTERRUPTED: Final = 130
MISTAKES: Final = (TenantFailed, ChildFailed, DirectFailed, CliMissing, namespace.NoNamespace, OSError)


class Command(Protocol):
    """What a module must have to be a sub-command."""

    NAME: str
    SUMMARY: str
    DESCRIPTION: str
    SERIES: frozenset[str]

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Its own arguments."""

    def run(self, arguments: argparse.Namespace) -> Report:
        """Measure."""


COMMANDS: Final[tuple[Command, ...]] = (
    cold_vs_warm, run, sweep, ramp, soak, connect, binding, crowd, idle, chaos, churn, peers,
    spawn_stall,
)  # fmt: skip
RATIOS: Final = frozenset({peers.NAME})
"""Commands whose assertions are on ratios, not on durations."""


class FileCommand(Protocol):
    """What a module must have that reads result files and measures nothing."""

    NAME: str
    SUMMARY: str
    DESCRIPTION: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Its own arguments."""

    def run(self, arguments: argparse.Namespace) -> int:
        """Print, and return the exit code."""


FILE_COMMANDS: Final[tuple[FileCommand, ...]] = (compare_files, report_file)
NO_RESULTS: Final = (NoResult, Unfit, NoMarkers, OSError)
"""What a file command raises for files that are not what it needs."""


def parser() -> argparse.ArgumentParser:
    """The arguments of every sub-command."""
    top = argparse.ArgumentParser(prog="python -m bench", description="Benchmarks of the broker, one question each.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        one = commands.add_parser(
            command.NAME, help=command.SUMMARY, description=command.DESCRIPTION,
            formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
        )  # fmt: skip
        command.add_arguments(one)
        result = one.add_argument_group("result")
        result.add_argument(
            "--output", type=Path, metavar="FILE.json", help="write every sample and what it was run with"
        )
        is_of_ratios = command.NAME in RATIOS
        kind, example = ("Ratios", "burst_vs_websocketd<=0.3") if is_of_ratios else ("Series", "welcome_p50<60ms")
        form = _ratio if is_of_ratios else _bound
        told = f"for example '{example}'; repeatable; exit code 99 when one does not hold. {kind}: "
        result.add_argument("--assert", dest="assertions", type=form, action="append", default=[], metavar="BOUND",
                            help=told + ", ".join(sorted(command.SERIES)))  # fmt: skip
        result.add_argument("--seed", type=int, default=1, help="of everything random (default %(default)s)")
        one.set_defaults(command=command, file_command=None)
    for file_command in FILE_COMMANDS:
        one = commands.add_parser(
            file_command.NAME, help=file_command.SUMMARY, description=file_command.DESCRIPTION,
            formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
        )  # fmt: skip
        file_command.add_arguments(one)
        one.set_defaults(file_command=file_command)
    return top


def _bound(text: str) -> Bound:
    try:
        return Bound.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _ratio(text: str) -> RatioBound:
    try:
        return RatioBound.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sub-command and return its exit code."""
    given = list(sys.argv[1:] if argv is None else argv)
    top = parser()
    arguments = top.parse_args(given)
    if arguments.file_command is not None:
        return _read_files(arguments)
    command: Command = arguments.command
    unknown = [str(bound) for bound in arguments.assertions if bound.series not in command.SERIES]
    if unknown:
        top.error(f"--assert: no such series in {command.NAME}: {', '.join(unknown)}")
    del arguments.command, arguments.file_command
    try:
        if clis.is_real(arguments):
            namespace.ensure(given)
        with _signals_interrupt():
            report = command.run(arguments)
    except MISTAKES as error:
        return _told([error])
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BaseExceptionGroup as group:
        # A task group wraps what its tasks raise: what we know is told in a line, the rest goes up.
        known, rest = group.split(MISTAKES)
        if known is None or rest is not None:
            raise
        return _told(_leaves(known))
    return _finish(report, arguments)


def _read_files(arguments: argparse.Namespace) -> int:
    command: FileCommand = arguments.file_command
    try:
        return command.run(arguments)
    except NO_RESULTS as error:
        print(f"bench: {error}", file=sys.stderr)
        return EXIT_MISTAKE


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    """SIGTERM ends what was started as Ctrl-C does: asyncio then cancels the main task.

    A program in the background of a shell script is born with SIGINT ignored; this one takes it all the same.
    """
    before = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    before_int = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before_int)
        signal.signal(signal.SIGTERM, before)


def _finish(report: Report, arguments: argparse.Namespace) -> int:
    print(report.text())
    if arguments.output is not None:
        report.write(arguments.output)
    if report.interrupted:
        return EXIT_INTERRUPTED
    failed = report.failed(arguments.assertions)
    for line in failed:
        print(f"assertion: {line}", file=sys.stderr)
    if report.violations:
        return EXIT_FAILED
    return EXIT_ASSERTION if failed else 0


def _told(errors: Sequence[BaseException]) -> int:
    for error in errors:
        print(f"bench: {error}", file=sys.stderr)
    is_missing = any(isinstance(error, CliMissing | namespace.NoNamespace) for error in errors)
    return EXIT_UNAVAILABLE if is_missing else EXIT_FAILED


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


if __name__ == "__main__":
    sys.exit(main())
