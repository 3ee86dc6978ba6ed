"""Where a conversation lies on disk, and what is told from its files.

Blocking file system calls; what may take long is called from a thread.  Callers: ``broker.launcher`` makes one for each
slot, ``broker.child`` and ``broker.tenure`` wipe it, ``broker.transcript`` and ``broker.branch`` read below it.  The
agent writes there as it likes: nothing found below is trusted to be a plain file, or to be inside.
"""

import contextlib
import os
import shutil
import stat
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

MAX_PROJECTS = 1000
"""Folders of transcripts that are looked through; a CLI that stays in one working directory has one."""


@dataclass(slots=True, eq=False)
class SessionDirectory:
    """``home``, ``work`` and ``tmp`` of one process and later of its tenant's conversation; mode 0700."""

    root: Path
    is_kept: bool = False
    """It is a conversation's; otherwise whoever ended the process that lived in it wipes it."""

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

    @property
    def debug_log(self) -> Path:
        """Where the CLI writes its debug log, if its profile asks for one."""
        return self.root / "debug.log"

    def create(self) -> None:
        """Make the folders; harmless when they exist."""
        for folder in (self.root, self.home, self.work, self.tmp, self.config):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def wipe(self) -> bool:
        """Remove everything; blocking (call it from a thread).  False when something would not go: it is left to the
        broker's next start."""
        shutil.rmtree(self.root, ignore_errors=True)
        if os.path.lexists(self.root):
            self._open_folders()
            shutil.rmtree(self.root, ignore_errors=True)
        return not os.path.lexists(self.root)

    def _open_folders(self) -> None:
        """Undo the modes by which an agent has closed folders to its own user."""
        for folder, names, _ in os.walk(self.root):
            for path in (os.path.join(folder, name) for name in names):
                if not os.path.islink(path):
                    with contextlib.suppress(OSError):
                        os.chmod(path, 0o700)

    def transcript(self, session_id: str) -> Path | None:
        """The file of that conversation of the CLI, None while there is none.

        It is written late: a process that is killed early in its first turn has left none.
        """
        projects = self.config / "projects"
        if os.path.realpath(projects) != os.path.join(os.path.realpath(self.root), "home", ".claude", "projects"):
            return None
        with contextlib.suppress(OSError), os.scandir(projects) as folders:
            for folder in islice(folders, MAX_PROJECTS):
                path = projects / folder.name / f"{session_id}.jsonl"
                if folder.is_dir(follow_symlinks=False) and _has_content(path):
                    return path
        return None

    def has_transcript(self, session_id: str) -> bool:
        """Whether ``--resume`` of ``session_id`` has anything to read."""
        return self.transcript(session_id) is not None


def _has_content(path: Path) -> bool:
    """A plain file with something in it; a link is none."""
    try:
        found = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size > 0
