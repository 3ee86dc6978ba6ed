"""Where a conversation lies on disk, and what is told from its files.

Blocking file system calls; what may take long is called from a thread.  Callers: ``broker.processes.launcher`` makes
one for each slot, ``broker.processes.child`` and ``broker.sessions.tenure`` wipe it, ``broker.sessions.transcript`` and
``broker.sessions.branch`` read below it.  The agent writes there as it likes: nothing found below is trusted to be a
plain file, or to be inside.
"""

import contextlib
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

MAX_PROJECTS = 1000
"""Folders of transcripts that are looked through; a CLI that stays in one working directory has one."""
PROJECTS = ("home", ".claude", "projects")


@contextmanager
def opened_folder(path: Path | str, dir_fd: int | None = None) -> Iterator[int]:
    """A folder's file descriptor for a ``with`` block; a link is no folder.  Raises ``OSError``."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        yield fd
    finally:
        os.close(fd)


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
        """Make the folders; harmless when they exist.  Whatever else an agent put in the place of one is removed.

        Raises ``OSError``, also when ``root`` itself is no folder.
        """
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        with opened_folder(self.root) as root:
            for folder in (self.home, self.work, self.tmp):
                _make(folder.name, root)
            with opened_folder(self.home.name, root) as home:
                _make(self.config.name, home)

    @contextmanager
    def opened(self, *names: str) -> Iterator[int]:
        """The file descriptor of the folder ``root/names...`` for a ``with`` block.

        Each folder is opened in the one before, and none may be a link: what is held open cannot be exchanged any
        more, whatever an agent does to the names meanwhile.  Raises ``OSError``.
        """
        with contextlib.ExitStack() as stack:
            fd = stack.enter_context(opened_folder(self.root))
            for name in names:
                fd = stack.enter_context(opened_folder(name, fd))
            yield fd

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

    def transcript(self, session_id: str) -> "Transcript | None":
        """The file of that conversation of the CLI, None while there is none.

        It is written late: a process that is killed early in its first turn has left none.
        """
        with contextlib.suppress(OSError), self.opened(*PROJECTS) as projects, os.scandir(projects) as folders:
            for folder in islice(folders, MAX_PROJECTS):
                found = Transcript(self, folder.name, session_id)
                if folder.is_dir(follow_symlinks=False) and _has_content(found.name, folder.name, projects):
                    return found
        return None

    def has_transcript(self, session_id: str) -> bool:
        """Whether ``--resume`` of ``session_id`` has anything to read."""
        return self.transcript(session_id) is not None


@dataclass(frozen=True, slots=True)
class Transcript:
    """A conversation's file, as it was found: in the folder ``folder`` of ``projects``.

    A name, not a promise: whoever reads it opens the folder, and the file in that.
    """

    directory: SessionDirectory
    folder: str
    session_id: str

    @property
    def name(self) -> str:
        """The file's name."""
        return f"{self.session_id}.jsonl"

    def opened_folder(self) -> contextlib.AbstractContextManager[int]:
        """See ``SessionDirectory.opened``."""
        return self.directory.opened(*PROJECTS, self.folder)


def _make(name: str, parent: int) -> None:
    """A folder in ``parent``, of the same owner; anything else of that name is removed."""
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            return
        os.unlink(name, dir_fd=parent)
    os.mkdir(name, 0o700, dir_fd=parent)
    owner = os.fstat(parent)
    if owner.st_uid != os.geteuid():
        os.chown(name, owner.st_uid, owner.st_gid, dir_fd=parent, follow_symlinks=False)


def _has_content(name: str, folder: str, projects: int) -> bool:
    """A plain file with something in it; a link is none."""
    try:
        with opened_folder(folder, projects) as fd:
            found = os.stat(name, dir_fd=fd, follow_symlinks=False)
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size > 0
