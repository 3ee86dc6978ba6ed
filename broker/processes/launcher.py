"""Launch profile to argv, environment and directories: everything that is fixed when a process starts.

Callers: ``broker.pool.pool``.  A slot is born with its own directory, which simply becomes the tenant's at bind:
nothing is moved.  Nothing of the broker's own environment reaches a child, and nothing secret is ever in argv.
"""

import fcntl
import os
import shutil
import subprocess
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import anyio

from broker.config.launch_profile import LaunchProfile
from broker.config.places import place
from broker.config.tree import SCRUB_VARIABLE, Config
from broker.errors import CliMissing, ConfigError, ProcessError
from broker.processes import scrub
from broker.processes.cgroup import Cgroup, Cgroups
from broker.processes.isolation import Isolation, choose
from broker.processes.orphans import MARKER, kill_left_behind, reap_strays
from broker.processes.program import PROJECT_ROOT, QUIET, VERSION_DEADLINE_S, Cli
from broker.processes.session_directory import SessionDirectory

BASELINE = (
    "-p",
    "--input-format=stream-json",
    "--output-format=stream-json",
    "--verbose",
    "--include-partial-messages",
    "--permission-prompt-tool=stdio",
    "--strict-mcp-config",
)
"""What every process is started with; the rest of its flags are its profile's."""
STATE_DIR = "a folder, there or to be made, that the broker can write to"
EVENTS = {
    "CLAUDE_CODE_STARTUP_FAILURE_RESULTS": "1",
    "CLAUDE_CODE_EMIT_SESSION_STATE_EVENTS": "1",
    "CLAUDE_CODE_ENABLE_SDK_FILE_CHECKPOINTING": "true",  # without it `rewind_files` has nothing to go back to
}
# Not here: CLAUDE_CODE_RESUME_INTERRUPTED_TURN.  Unset is off; Claude Code 2.1.197 takes any text, "0" too, for on and
# runs the turn that a kill interrupted once more.
PROBE = """set -e
cd "$HOME"
: >probe
if [ -e "/proc/$1" ]; then echo "the broker's own process is still visible in /proc" >&2; exit 1; fi
shift
exec "$@"
"""
"""The directory can be written, the broker's process (the first argument) is hidden, the CLI (the rest) starts."""


@dataclass(frozen=True, slots=True)
class Launch:
    """One start, ready to be executed."""

    argv: tuple[str, ...]
    environment: dict[str, str]
    cwd: Path
    marker: str
    session_id: str
    directory: SessionDirectory
    profile: LaunchProfile
    user: int | None = None
    """The system user that it runs as, None for the broker's own."""
    wrappers: int = 0
    """How many processes stand before the CLI's own, each the only child of the one before."""
    cgroup: Cgroup = field(default_factory=Cgroup)


class Launcher:
    """Makes launches.  ``extra_env`` is the operator's, and wins; ``user_ids`` are those given to sessions alone."""

    def __init__(self, cli: Cli, state_dir: Path, extra_env: Mapping[str, str], user_ids: range = range(0)) -> None:
        self.cli = cli
        self._sessions = state_dir / "sessions"
        self._extra = dict(extra_env)
        self._user_ids = user_ids
        self._path = os.environ.get("PATH", "/usr/local/bin:/usr/bin:/bin")
        if shutil.which("setpriv") is None:
            raise CliMissing("setpriv is not on PATH: install util-linux")
        self.isolation = Isolation("none", state_dir)
        self.cgroups = Cgroups()
        self.is_scrubbed = False
        self.unscrubbed_because = ""
        self.one_by_one = anyio.Lock()
        """Held for a launch."""

    def claim_directory(self) -> None:
        """Keep ``state.dir`` for this process, until it ends: two brokers would sweep each other's conversations away.

        Raises ``ConfigError`` when another one has it, or it is no folder that can be written to.
        """
        folder = self._sessions.parent
        with place("state.dir", STATE_DIR):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)  # no file that somebody could remove
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(held)
            raise ConfigError("state.dir", f"{folder} is in use by another broker", "a folder of its own") from None
        self.cgroups = Cgroups.of(folder)

    def sweep_directories(self, kept: Collection[str] | None, *, is_whole: bool = True) -> Path | None:
        """End what an earlier run left running, and remove what it left lying but the folders ``kept`` of its
        conversations (None: all of them).

        Not ``is_whole``: others may be conversations', too, so they are moved to ``state.dir/unknown-N``, which nobody
        but an operator touches; returns where they are.
        """
        self.cgroups.sweep()
        kill_left_behind(self._sessions, self._user_ids)
        with place("state.dir", STATE_DIR):
            self._sessions.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = list(self._sessions.iterdir())
        others = [] if kept is None else [path for path in found if path.name not in kept]
        if others and not is_whole:
            aside = next(path for n in count(1) if not (path := self._sessions.with_name(f"unknown-{n}")).exists())
            aside.mkdir(mode=0o700)
            for folder in others:
                folder.rename(aside / folder.name)
            return aside
        for folder in others:
            SessionDirectory(folder).wipe()
        return None

    def directory(self, name: str) -> SessionDirectory:
        """The directory of a conversation of an earlier run."""
        return SessionDirectory(self._sessions / name, is_kept=True)

    def prepare(self, config: Config) -> None:
        """Find out how processes can be ended, kept apart, and credentials hidden from tools, by trying it.

        Blocking; ``sweep_directories`` comes before.  Raises ``ConfigError`` when what is asked for cannot work here.
        """
        if config.pool.cgroup == "auto":
            self.cgroups.open()
        command = Path(self.cli.command[0])
        needed = (command, command.resolve(), *([PROJECT_ROOT] if self.cli.simulated else []))
        self.isolation = choose(config.pool, self._sessions.parent, needed, self._try_isolation)
        self._path = self.isolation.search_path(self._path)
        if self.cli.simulated or config.cli.scrub == "off":  # the simulator hides them without any tool
            self.unscrubbed_because = "cli.scrub is off" if config.cli.scrub == "off" else ""
        else:
            example = SessionDirectory(self._sessions / str(uuid.uuid4())[:13])
            path = self._environment(example)["PATH"]
            self.unscrubbed_because = scrub.obstacle(path, example.tmp, lambda words: self._try(self.isolation, words))
        self.is_scrubbed = not self.unscrubbed_because
        if config.cli.scrub == "on" and not self.is_scrubbed:
            raise ConfigError("cli.scrub", f"on, but {self.unscrubbed_because}", "auto, off")

    def _try_isolation(self, isolation: Isolation) -> str:
        foreign = os.getpid() if isolation.hides else "none"
        return self._try(isolation, ("sh", "-c", PROBE, "sh", str(foreign), *self.cli.command, "--version"))

    def _try(self, isolation: Isolation, words: Sequence[str]) -> str:
        """Run ``words`` as a session's process is run; what went wrong, empty when nothing did."""
        directory = SessionDirectory(self._sessions / "probe")
        try:
            directory.create()
            argv = (*isolation.prefix(directory.root, isolation.settle(directory.root)), *words)
            subprocess.run(
                argv, env=self._environment(directory), cwd=directory.work, stdin=subprocess.DEVNULL,
                capture_output=True, timeout=VERSION_DEADLINE_S, check=True, umask=0o077,
            )  # fmt: skip
        except subprocess.CalledProcessError as error:
            return error.stderr.decode(errors="replace").strip()[-500:] or f"exit {error.returncode} of {words[0]}"
        except (OSError, ProcessError, subprocess.TimeoutExpired) as error:
            return str(error)
        finally:
            directory.wipe()
        return ""

    def fresh(self, profile: LaunchProfile) -> Launch:
        """A new conversation in a new directory.  Raises ``OSError``, ``ProcessError`` when it cannot be made."""
        session_id, directory = self.place()
        try:
            return self._launch(profile, directory, session_id, f"--session-id={session_id}")
        except BaseException:
            directory.wipe()
            raise

    def tidy(self) -> None:
        """Reap what has died by itself, remove cgroups that have become empty.  Never waits."""
        reap_strays()
        self.cgroups.tidy()

    def place(self) -> tuple[str, SessionDirectory]:
        """A session id of the CLI and a directory, both new.  Raises ``OSError`` when it cannot be made."""
        session_id = str(uuid.uuid4())
        directory = SessionDirectory(self._sessions / session_id[:13])
        try:
            directory.create()
        except OSError:
            directory.wipe()
            raise
        return session_id, directory

    def again(
        self, profile: LaunchProfile, directory: SessionDirectory, session_id: str, fork_of: str | None = None
    ) -> tuple[Launch, bool]:
        """A conversation's next process, and whether its transcript was found; without one it starts over.

        ``fork_of``: the conversation, copied into ``directory``, that it branched off; it starts over from there.
        """
        directory.create()
        flags = [f"--session-id={session_id}"]
        if found := directory.has_transcript(session_id):
            flags = [f"--resume={session_id}"]
        elif fork_of is not None and directory.has_transcript(fork_of):
            flags += [f"--resume={fork_of}", "--fork-session"]
        return self._launch(profile, directory, session_id, *flags), found

    def _launch(
        self, profile: LaunchProfile, directory: SessionDirectory, session_id: str, *session_flags: str
    ) -> Launch:
        marker = uuid.uuid4().hex
        flags = profile.flags(str(directory.debug_log))
        user = self.isolation.settle(directory.root)
        cli = (*self.cli.command, *BASELINE, *self.cli.own_flags)
        argv = (*self.isolation.prefix(directory.root, user), *cli, *flags, *session_flags)
        environment = self._environment(directory) | {MARKER: marker}
        wrappers, cgroup = self.isolation.wrappers, self.cgroups.plan(marker)
        return Launch(argv, environment, directory.work, marker, session_id, directory, profile, user, wrappers, cgroup)

    def _environment(self, directory: SessionDirectory) -> dict[str, str]:
        simulated = {"PYTHONPATH": str(PROJECT_ROOT), "CLAUDE_CODE_OAUTH_TOKEN": "simulated"}
        return {
            "PATH": self._path,
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
            **({SCRUB_VARIABLE: "1"} if self.is_scrubbed else {}),
            **(simulated if self.cli.simulated else {}),
            **self._extra,
        }
