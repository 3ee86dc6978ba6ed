"""The index in one SQLite file below ``state.dir``: the default, for one broker.

Write-ahead log and ``synchronous = NORMAL``: what was kept outlives every end of the process; a power cut may cost the
last transactions, never the file.  The file holds no secret, and nothing of it is trusted: a damaged one is put aside.

That a message only waited is believed within one boot of the machine: what the kernel has taken is there as long as it
runs.  After a power cut the note that the message was written may be what is missing; a sync for each such note would
cost the frame path what the disk takes.
"""

import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from uuid import uuid4

from broker.sessions.stores import Key, StoreFailed
from broker.turns.message_ids import Noted, Outcome

VERSION = 1
REMEMBERED_IDS = 1024
"""Ended ids that are kept of each conversation, as in memory."""
PRUNE_EVERY = 256
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
WAITING = "waiting "
"""Begins the outcome of a message that no CLI was given; the boot in which that was noted ends it."""
OUTER_FAULTS = frozenset(
    {
        sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_PERM, sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_AUTH,
    }
)  # fmt: skip
"""What SQLite complains of that lies around the file, not in it."""
PASSING_FAULTS = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
"""The same may work later."""
START_BUSY_S = 5.0
BUSY_MS = 50
"""How long a transaction waits for another program's lock: the event loop stands still meanwhile."""
SCHEMA = """
CREATE TABLE conversation (
    tenant TEXT NOT NULL, subject TEXT NOT NULL, id TEXT NOT NULL, record BLOB NOT NULL,
    PRIMARY KEY (tenant, subject, id)
) WITHOUT ROWID;
CREATE TABLE message (
    n INTEGER PRIMARY KEY, tenant TEXT NOT NULL, subject TEXT NOT NULL, id TEXT NOT NULL,
    message TEXT NOT NULL, digest BLOB NOT NULL, outcome TEXT,
    UNIQUE (tenant, subject, id, message)
);
"""
MESSAGES = "SELECT message, digest, outcome FROM message WHERE tenant = ? AND subject = ? AND id = ? ORDER BY n"
PRUNE = """
DELETE FROM message WHERE tenant = ? AND subject = ? AND id = ? AND outcome IN ('completed', 'failed') AND n <= (
    SELECT n FROM message WHERE tenant = ? AND subject = ? AND id = ? ORDER BY n DESC LIMIT 1 OFFSET ?
)
"""


class SqliteStore:
    """See ``broker.sessions.stores.Store``."""

    def __init__(self, path: Path) -> None:
        """Open or make the file.  ``was_missing``: none was there, or an empty one; ``was_damaged``: it could not be
        read, and was put aside.

        Waits at most ``START_BUSY_S`` for another program's lock.  Raises ``StoreFailed``: the folder cannot be
        written, or the file is another version's.
        """
        self.was_damaged = False
        self._accepted = 0
        self._owed: dict[Key, None] = {}
        """Conversations that are gone and could not be deleted yet; as many as have a record at most."""
        self._waiting = WAITING + _boot()
        try:
            self._db, self.was_missing = _opened(path)
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            if not _is_damage(error, path):
                raise _failure(path, error) from error
            _put_aside(path)
            self.was_damaged = True
            with _translated(path):
                self._db, self.was_missing = _opened(path)
        self._path = path
        self._file = _identity(path)

    def conversations(self) -> list[tuple[Key, bytes]]:
        with self._transaction(writes=False) as db:
            rows = db.execute("SELECT tenant, subject, id, record FROM conversation").fetchall()
        return [((tenant, subject, session_id), record) for tenant, subject, session_id, record in rows]

    def messages(self, key: Key) -> list[tuple[str, bytes, Noted]]:
        with self._transaction(writes=False) as db:
            rows = db.execute(MESSAGES, key).fetchall()
        known: dict[str | None, Noted] = {
            "completed": "completed", "failed": "failed", self._waiting: "waiting",
        }  # fmt: skip
        return [(message_id, digest, known.get(outcome)) for message_id, digest, outcome in rows]

    def keep(self, key: Key, record: bytes) -> None:
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO conversation VALUES (?, ?, ?, ?)", (*key, record))

    def accept(self, key: Key, message_id: str, digest: bytes, *, is_waiting: bool) -> None:
        with self._transaction() as db:
            db.execute(
                "INSERT OR REPLACE INTO message (tenant, subject, id, message, digest, outcome) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                (*key, message_id, digest, self._waiting if is_waiting else None),
            )
            self._accepted += 1
            if self._accepted % PRUNE_EVERY == 0:
                db.execute(PRUNE, (*key, *key, REMEMBERED_IDS + PRUNE_EVERY))

    def write(self, key: Key, message_id: str) -> None:
        with self._transaction() as db:
            db.execute(
                "UPDATE message SET outcome = NULL WHERE tenant = ? AND subject = ? AND id = ? AND message = ?",
                (*key, message_id),
            )

    def end(self, key: Key, outcomes: Iterable[tuple[str, Outcome]]) -> None:
        with self._transaction() as db:
            db.executemany(
                "UPDATE message SET outcome = ? WHERE tenant = ? AND subject = ? AND id = ? AND message = ?",
                [(outcome, *key, message_id) for message_id, outcome in outcomes],
            )

    def forget(self, key: Key) -> None:
        self._owed[key] = None
        self.settle()

    def settle(self) -> None:
        if self._owed:
            with self._transaction():
                pass  # it begins with what is owed

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def _transaction(self, *, writes: bool = True) -> Iterator[sqlite3.Connection]:
        """What is owed comes first: the id of a conversation that is gone may be another's by now."""
        if _identity(self._path) != self._file:  # what is written to it now is gone with this process
            raise StoreFailed(f"{self._path}: the file was removed or replaced while the broker runs")
        with _translated(self._path), self._db:
            self._db.execute("BEGIN")
            for key in self._owed if writes else ():
                self._db.execute("DELETE FROM conversation WHERE tenant = ? AND subject = ? AND id = ?", key)
                self._db.execute("DELETE FROM message WHERE tenant = ? AND subject = ? AND id = ?", key)
            yield self._db
        if writes:
            self._owed.clear()


def _identity(path: Path) -> tuple[int, int] | None:
    """Which file lies there; None: none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _boot() -> str:
    """Names this boot of the machine; where it cannot be told, nothing of another run is of the same one."""
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return str(uuid4())


def _opened(path: Path) -> tuple[sqlite3.Connection, bool]:
    """A connection to a file that is whole and of this version; True: it was made just now.

    Raises ``sqlite3.DatabaseError``.
    """
    db = sqlite3.connect(path, timeout=START_BUSY_S, isolation_level=None, check_same_thread=True)
    db.text_factory = _text
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        (found,) = db.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise sqlite3.DatabaseError(found)
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version not in (0, VERSION):
            raise StoreFailed(f"{path}: was written by another version of the broker (found {version})")
        made = SCHEMA if version == 0 else ""
        db.executescript(f"BEGIN; {made} PRAGMA user_version = {VERSION}; COMMIT;")  # so it can be written
        db.execute("SELECT record FROM conversation LIMIT 1")
        db.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
    except BaseException:
        db.close()
        raise
    path.chmod(0o600)
    return db, version == 0


def _text(data: bytes) -> str:
    """A byte that was changed in a name costs that one conversation its name, not the broker all of them."""
    return data.decode(errors="replace")


def _is_damage(error: Exception, path: Path) -> bool:
    """Whether the file itself is broken (its own words, too), and not the disk or its rights."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
    if code == sqlite3.SQLITE_READONLY:  # a broken file can say that of itself
        return os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)
    return code not in OUTER_FAULTS


def _put_aside(path: Path) -> None:
    """Under a name that is free, with what belongs to it; an operator may still look at it."""
    number = next(n for n in count(1) if not path.with_name(f"{path.name}.damaged-{n}").exists())
    for end in ("", "-wal", "-shm"):
        part = path.with_name(path.name + end)
        if part.exists():
            part.rename(path.with_name(f"{path.name}.damaged-{number}{end}"))


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, UnicodeDecodeError) as error:
        raise _failure(path, error) from error


def _failure(path: Path, error: Exception) -> StoreFailed:
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF
    return StoreFailed(f"{path}: {error}", is_passing=code in PASSING_FAULTS)
