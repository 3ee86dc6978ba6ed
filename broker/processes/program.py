"""The program behind every session: which one it is, and what it says about itself.

Caller: ``broker.app``, once at the start, before a port is opened; ``broker.processes.launcher`` starts it.
"""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from broker.errors import CliMissing

QUIET = {
    "DISABLE_TELEMETRY": "1",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "DISABLE_AUTOUPDATER": "1",
    "DISABLE_ERROR_REPORTING": "1",
}
TELLS_MESSAGES = (2, 1, 329)
"""From this version on the CLI is known to tell what becomes of a user message (``command_lifecycle``)."""
VERSION_DEADLINE_S = 30.0
PROJECT_ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True, slots=True)
class Cli:
    """The program behind every session."""

    command: tuple[str, ...]
    version: str
    simulated: bool

    @property
    def own_flags(self) -> tuple[str, ...]:
        """Flags that only this version needs: an older one has to say each message again when it takes it in."""
        found = tuple(int(part) for part in re.findall(r"\d+", self.version)[:3])
        return () if found >= TELLS_MESSAGES else ("--replay-user-messages",)


def find_cli(setting: str) -> Cli:
    """Resolve ``auto``, ``simulated`` or a path, and ask the program for its version.

    ``auto``: ``claude`` on PATH, then the binary inside ``claude-agent-sdk`` if that is installed.  Blocking, at most
    ``VERSION_DEADLINE_S``.  Raises ``CliMissing`` that says what to do.
    """
    if setting == "simulated":
        command: tuple[str, ...] = (sys.executable, "-S", "-m", "simulator.cli")
    elif setting == "auto":
        command = (_find_real(),)
    else:
        found = shutil.which(setting)
        if found is None:
            raise CliMissing(f"{setting} is not an executable file: check cli.command or --cli")
        command = (str(Path(found).absolute()),)
    return Cli(command, _version(command), simulated=setting == "simulated")


def _find_real() -> str:
    on_path = shutil.which("claude")
    if on_path is not None:
        return on_path
    spec = find_spec("claude_agent_sdk")
    if spec is not None and spec.submodule_search_locations:
        bundled = Path(spec.submodule_search_locations[0]) / "_bundled" / "claude"
        if os.access(bundled, os.X_OK):
            return str(bundled)
    raise CliMissing(
        "no Claude Code CLI found: install it so that `claude` is on PATH, name it with --cli PATH, "
        "or try the broker without one: --cli simulated"
    )


def _version(command: tuple[str, ...]) -> str:
    environment = {"PATH": os.environ.get("PATH", ""), "HOME": "/nonexistent", "PYTHONPATH": str(PROJECT_ROOT), **QUIET}
    try:
        answer = subprocess.run(
            [*command, "--version"], env=environment, capture_output=True, timeout=VERSION_DEADLINE_S, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise CliMissing(f"{command[0]} --version failed: {error}") from error
    words = answer.stdout.decode(errors="replace").split()
    if not words:
        raise CliMissing(f"{command[0]} --version printed nothing")
    return words[0]
