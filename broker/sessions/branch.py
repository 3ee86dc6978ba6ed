"""What a fork takes along: the parent's transcript, what lies beside it, and its working directory, copied.

Blocking; called in a thread by ``broker.sessions.registry``.  The parent may be live and in a turn: what is there is
taken, its transcript up to the last whole line, and nothing of it is touched.  Links are copied as links and never
followed, sockets and pipes are left out.
"""

import errno
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass

from broker.errors import BrokerError
from broker.processes.session_directory import SessionDirectory, Transcript, opened_folder
from broker.sessions.transcript import open_plain
from protocol.codes import CloseCode, ErrorCode

PIECE_BYTES = 1 << 20
MAX_DEPTH = 64
VANISHED = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
COST_STATE = b'"cost-state"'
"""Kind of the transcript's line from which a resumed CLI goes on counting costs: a branch counts its own."""


@dataclass(slots=True)
class Budget:
    """What may still be copied, bytes and files; ``limit_mb`` is the setting that a refusal names."""

    limit_mb: int
    max_files: int
    bytes: int = 0
    files: int = 0

    def spend(self, size: int) -> None:
        """Take one file of ``size`` bytes, or more bytes of it.  Raises ``BrokerError``."""
        self.bytes += size
        if self.bytes > self.limit_mb * 2**20:
            raise self._refusal(f"session.fork_max_mb = {self.limit_mb}")

    def add_file(self) -> None:
        """Take one more entry.  Raises ``BrokerError``."""
        self.files += 1
        if self.files > self.max_files:
            raise self._refusal(f"session.fork_max_files = {self.max_files}")

    def too_deep(self) -> BrokerError:
        """The folders are nested too deep."""
        return self._refusal(f"{MAX_DEPTH} folders in each other")

    def _refusal(self, limit: str) -> BrokerError:
        message = f"fork: the conversation's files are more than {limit}"
        return BrokerError(ErrorCode.BIND_FAILED, message, close=CloseCode.BIND_FAILED)


def copy_conversation(transcript: Transcript, child: SessionDirectory, budget: Budget) -> None:
    """Copy the conversation of ``transcript`` into ``child``, where ``--resume`` finds it.

    Raises ``BrokerError`` at the budget's end and ``OSError``; the caller then wipes ``child``.
    """
    # The CLI names the folder after its working directory, which differs in this one part.
    parent = transcript.directory
    folder = child.config / "projects" / transcript.folder.replace(parent.root.name, child.root.name)
    folder.mkdir(mode=0o700, parents=True)
    with transcript.opened_folder() as source, opened_folder(folder) as target:
        _copy_lines(source, target, transcript.name, budget)
        _copy_entries(source, target, (name for name in os.listdir(source) if not name.endswith(".jsonl")), budget)
    with parent.opened("work") as source, child.opened("work") as target:
        _copy_entries(source, target, os.listdir(source), budget)


def _copy_lines(from_fd: int, to_fd: int, name: str, budget: Budget) -> None:
    """The whole lines that stand there now, in pieces: a line may be as long as the file."""
    with open(open_plain(name, dir_fd=from_fd), "rb") as lines, open(_create(name, dir_fd=to_fd), "wb") as copied:
        left = os.fstat(lines.fileno()).st_size
        budget.spend(left)
        is_at_start, is_left_out, whole = True, False, 0
        while piece := lines.readline(min(PIECE_BYTES, left)):
            left -= len(piece)
            if is_at_start:
                is_left_out = COST_STATE in piece[:64]
            is_at_start = piece.endswith(b"\n")
            if not is_left_out:
                copied.write(piece)
                whole = copied.tell() if is_at_start else whole
        copied.truncate(whole)


def _create(path: str, mode: int = 0o600, dir_fd: int | None = None) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=dir_fd)


def _copy_entries(from_fd: int, to_fd: int, names: Iterable[str], budget: Budget, depth: int = 1) -> None:
    for name in names:
        _copy_entry(from_fd, to_fd, name, budget, depth)


def _copy_entry(from_fd: int, to_fd: int, name: str, budget: Budget, depth: int) -> None:
    """One entry of a folder; one that has vanished meanwhile, or become something else, is left out."""
    budget.add_file()
    try:
        found = os.stat(name, dir_fd=from_fd, follow_symlinks=False)
        if stat.S_ISLNK(found.st_mode):
            os.symlink(os.readlink(name, dir_fd=from_fd), name, dir_fd=to_fd)
        elif stat.S_ISREG(found.st_mode):
            _copy_file(from_fd, to_fd, name, budget)
        elif stat.S_ISDIR(found.st_mode):
            _copy_inner(from_fd, to_fd, name, budget, depth)
    except OSError as error:
        if error.errno not in VANISHED:
            raise


def _copy_inner(from_fd: int, to_fd: int, name: str, budget: Budget, depth: int) -> None:
    if depth == MAX_DEPTH:
        raise budget.too_deep()
    with opened_folder(name, from_fd) as inner:
        os.mkdir(name, 0o700, dir_fd=to_fd)
        with opened_folder(name, to_fd) as copied:
            _copy_entries(inner, copied, os.listdir(inner), budget, depth + 1)


def _copy_file(from_fd: int, to_fd: int, name: str, budget: Budget) -> None:
    with open(open_plain(name, dir_fd=from_fd), "rb", buffering=0) as source:
        mode = stat.S_IMODE(os.fstat(source.fileno()).st_mode) & 0o777
        with open(_create(name, mode | 0o600, to_fd), "wb") as target:
            while piece := source.read(PIECE_BYTES):
                budget.spend(len(piece))
                target.write(piece)
