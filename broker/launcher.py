"""Launch profile to argv, environment and directories: everything that is fixed when a process starts.

Callers: ``broker.pool``.  A slot is born with its own directory, which simply becomes the tenant's at bind: nothing is
moved.  Nothing of the broker's own environment reaches a child, and nothing secret is ever in argv.
"""

import fcntl
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from broker.errors import CliMissing, ConfigError
from broker.orphans import MARKER, kill_left_behind

BASELINE = (
    "-p",
    "--input-format=stream-json",
    "--output-format=stream-json",
    "--verbose",
    "--include-partial-messages",
    "--permission-prompt-tool=stdio",
    "--setting-sources=",
    "--strict-mcp-config",
)
QUIET = {
    "DISABLE_TELEMETRY": "1",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "DISABLE_AUTOUPDATER": "1",
    "DISABLE_ERROR_REPORTING": "1",
}
EVENTS = {
    "CLAUDE_CODE_STARTUP_FAILURE_RESULTS": "1",
    "CLAUDE_CODE_EMIT_SESSION_STATE_EVENTS": "1",
    "CLAUDE_CODE_RESUME_INTERRUPTED_TURN": "0",
}
VERSION_DEADLINE_S = 30.0
PROJECT_ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Cli:
    """The program behind every session."""

    command: tuple[str, ...]
    version: str
    simulated: bool


@dataclass(frozen=True, slots=True)
class SessionDirectory:
    """``home``, ``work`` and ``tmp`` of one process and later of its tenant's conversation; mode 0700."""

    root: Path

    @property
    def home(self) -> Path:
        """HOME; the CLI's configuration and transcripts are below it."""
        return self.root / "home"

    @property
    def work(self) -> Path:
        """The CLI's working directory."""
        return self.root / "work"

    @property
    def tmp(self) -> Path:
        """TMPDIR; also moves the sockets by which CLI processes of one user talk to each other."""
        return self.root / "tmp"

    @property
    def config(self) -> Path:
        """CLAUDE_CONFIG_DIR."""
        return self.home / ".claude"

    def create(self) -> None:
        """Make the folders; harmless when they exist."""
        for folder in (self.root, self.home, self.work, self.tmp, self.config):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def wipe(self) -> None:
        """Remove everything; blocking (call it from a thread).  A file that will not go is left to the next start."""
        shutil.rmtree(self.root, ignore_errors=True)

    def has_transcript(self, session_id: str) -> bool:
        """Whether ``--resume`` of ``session_id`` has anything to read.  It is written late: a process that is killed
        early in its first turn has left none."""
        return any(path.stat().st_size > 0 for path in self.config.glob(f"projects/*/{session_id}.jsonl"))


@dataclass(frozen=True, slots=True)
class Launch:
    """One start, ready to be executed."""

    argv: tuple[str, ...]
    environment: dict[str, str]
    cwd: Path
    marker: str
    session_id: str
    directory: SessionDirectory


class Launcher:
    """Makes launches.  ``models`` maps a profile's name to its ``--model``."""

    def __init__(self, cli: Cli, state_dir: Path, models: Mapping[str, str], extra_env: Mapping[str, str]) -> None:
        self.cli = cli
        self._sessions = state_dir / "sessions"
        self._models = models
        self._extra = dict(extra_env)
        setpriv = shutil.which("setpriv")
        if setpriv is None:
            raise CliMissing("setpriv is not on PATH: install util-linux")
        self._prefix = (setpriv, "--pdeathsig", "KILL", "--")

    def claim_directory(self) -> None:
        """Keep ``state.dir`` for this process, until it ends: two brokers would sweep each other's conversations away.

        Raises ``ConfigError`` when another one has it.
        """
        folder = self._sessions.parent
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        held = os.open(folder / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(held)
            raise ConfigError("state.dir", f"{folder} is in use by another broker", "a folder of its own") from None

    def sweep_directories(self) -> None:
        """End and remove what an earlier run left: its conversations ended with it."""
        kill_left_behind(self._sessions)
        shutil.rmtree(self._sessions, ignore_errors=True)
        self._sessions.mkdir(mode=0o700, parents=True, exist_ok=True)

    def fresh(self, profile: str) -> Launch:
        """A new conversation in a new directory.  Raises ``OSError`` when it cannot be made."""
        session_id = str(uuid.uuid4())
        directory = SessionDirectory(self._sessions / session_id[:13])
        directory.create()
        return self._launch(profile, directory, session_id, f"--session-id={session_id}")

    def again(self, profile: str, directory: SessionDirectory, session_id: str) -> tuple[Launch, bool]:
        """A conversation's next process, and whether its transcript was found; without one it starts over."""
        directory.create()
        found = directory.has_transcript(session_id)
        flag = f"--resume={session_id}" if found else f"--session-id={session_id}"
        return self._launch(profile, directory, session_id, flag), found

    def _launch(self, profile: str, directory: SessionDirectory, session_id: str, session_flag: str) -> Launch:
        marker = uuid.uuid4().hex
        argv = (*self._prefix, *self.cli.command, *BASELINE, f"--model={self._models[profile]}", session_flag)
        environment = self._environment(directory) | {MARKER: marker}
        return Launch(argv, environment, directory.work, marker, session_id, directory)

    def _environment(self, directory: SessionDirectory) -> dict[str, str]:
        simulated = {"PYTHONPATH": str(PROJECT_ROOT), "CLAUDE_CODE_OAUTH_TOKEN": "simulated"}
        return {
            "PATH": os.environ.get("PATH", "/usr/local/bin:/usr/bin:/bin"),
            "LANG": "C.UTF-8",
            "HOME": str(directory.home),
            "PWD": str(directory.work),
            "CLAUDE_CONFIG_DIR": str(directory.config),
            "TMPDIR": str(directory.tmp),
            "XDG_CONFIG_HOME": str(directory.home / ".config"),
            "XDG_CACHE_HOME": str(directory.home / ".cache"),
            "XDG_DATA_HOME": str(directory.home / ".local/share"),
            "XDG_STATE_HOME": str(directory.home / ".local/state"),
            "XDG_RUNTIME_DIR": str(directory.tmp),
            **QUIET,
            **EVENTS,
            **(simulated if self.cli.simulated else {}),
            **self._extra,
        }


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
