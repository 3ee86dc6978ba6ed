"""Which program stands behind the sessions: ``--cli simulated|real|PATH`` and ``--cli-version``.

Callers: every sub-command.
"""

import argparse
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from broker.errors import CliMissing
from broker.processes.program import Cli, find_cli

VERSIONS: Final = ("2.1.197", "2.1.329")
FOLDER: Final = Path(__file__).resolve().parent.parent / ".real-cli"


@dataclass(frozen=True)
class Choice:
    """One program: what the broker's ``--cli`` is given, and what was found there."""

    setting: str
    found: Cli

    @property
    def name(self) -> str:
        """For the head of a table."""
        return f"simulated CLI {self.found.version}" if self.found.simulated else f"real CLI {self.found.version}"


def add_arguments(parser: argparse.ArgumentParser, default: str = "simulated") -> None:
    """``--cli`` and ``--cli-version``."""
    parser.add_argument("--cli", default=default, metavar="simulated|real|PATH",
                        help="the program behind the sessions (default %(default)s); real: what `make real-cli` "
                             "installed, else claude on PATH")  # fmt: skip
    parser.add_argument("--cli-version", default=VERSIONS[-1], choices=(*VERSIONS, "both"),
                        help="with --cli real: which installed version (default %(default)s)")  # fmt: skip


def is_real(arguments: argparse.Namespace) -> bool:
    """Whether something other than the simulator may be started: then nothing but loopback may be in reach."""
    return bool(getattr(arguments, "cli", "simulated") != "simulated")


def choices(arguments: argparse.Namespace) -> list[Choice]:
    """The programs to measure, each asked for its version.  Raises ``CliMissing`` that says what to do."""
    if arguments.cli != "real":
        return [choice(arguments.cli)]
    wanted = VERSIONS if arguments.cli_version == "both" else (arguments.cli_version,)
    present = [FOLDER / version / "claude" for version in wanted if os.access(FOLDER / version / "claude", os.X_OK)]
    if len(present) == len(wanted):
        return [choice(str(path)) for path in present]
    on_path = shutil.which("claude")
    if on_path is None or present:
        raise CliMissing(f"real CLI {', '.join(wanted)} is not installed in .real-cli/: make real-cli")
    return [choice(on_path)]


def choice(setting: str) -> Choice:
    """One program, asked for its version.  Raises ``CliMissing``."""
    return Choice(setting, find_cli(setting))
