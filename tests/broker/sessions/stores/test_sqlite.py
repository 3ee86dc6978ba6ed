"""The index on disk: what was kept is there again, whatever cut the file; what was not kept is said."""

import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from broker.sessions.stores import Key, StoreFailed, sqlite
from broker.sessions.stores.sqlite import PRUNE_EVERY, REMEMBERED_IDS, SqliteStore
from broker.turns.message_ids import Noted
from tests.soak import LONG_S, size

ANN, BOB = ("local", "ann", "conv-1"), ("local", "bob", "conv-1")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "index.db"


@pytest.fixture
def store(path: Path) -> Iterator[SqliteStore]:
    made = SqliteStore(path)
    yield made
    made.close()


def test_what_was_kept_is_there_again(path: Path, store: SqliteStore) -> None:
    """Records and ids, each conversation's its own; the file is its owner's alone."""
    store.keep(ANN, b"a")
    store.keep(ANN, b"aa")
    store.keep(BOB, b"b")
    store.accept(ANN, "m-1", b"1", is_waiting=False)
    store.accept(ANN, "m-2", b"2", is_waiting=False)
    store.accept(BOB, "m-1", b"3", is_waiting=False)
    store.end(ANN, [("m-2", "completed"), ("m-9", "failed")])
    store.close()
    again = SqliteStore(path)
    assert sorted(again.conversations()) == [(ANN, b"aa"), (BOB, b"b")]
    assert again.messages(ANN) == [("m-1", b"1", None), ("m-2", b"2", "completed")]
    assert again.messages(BOB) == [("m-1", b"3", None)]
    again.forget(ANN)
    assert (again.conversations(), again.messages(ANN)) == ([(BOB, b"b")], [])
    again.close()
    assert path.stat().st_mode & 0o777 == 0o600


def test_old_ids_are_forgotten_and_open_ones_are_not(store: SqliteStore) -> None:
    """As in memory: the last thousand, and every one without an end."""
    store.accept(ANN, "open", b"", is_waiting=False)
    total = REMEMBERED_IDS + 3 * PRUNE_EVERY
    for number in range(total):
        store.accept(ANN, f"m-{number}", b"", is_waiting=False)
        store.end(ANN, [(f"m-{number}", "completed")])
    ids = [message_id for message_id, _, _ in store.messages(ANN)]
    assert ids[0] == "open"
    assert ids[-REMEMBERED_IDS:] == [f"m-{number}" for number in range(total - REMEMBERED_IDS, total)]
    assert len(ids) <= REMEMBERED_IDS + 2 * PRUNE_EVERY + 1


def test_what_waits_is_remembered_however_much_ends_after_it(store: SqliteStore) -> None:
    """It has no end."""
    store.accept(ANN, "waits", b"", is_waiting=True)
    for number in range(REMEMBERED_IDS + 3 * PRUNE_EVERY):
        store.accept(ANN, f"m-{number}", b"", is_waiting=False)
        store.end(ANN, [(f"m-{number}", "completed")])
    assert store.messages(ANN)[0] == ("waits", b"", "waiting")


def test_that_a_message_only_waited_is_believed_in_the_same_boot_alone(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut may have taken the note that it was written."""
    boot = tmp_path / "boot_id"
    monkeypatch.setattr(sqlite, "BOOT_ID", boot)
    boot.write_text("one\n")
    store = SqliteStore(path)
    for message_id in ("m-1", "m-2", "m-3"):
        store.accept(ANN, message_id, b"", is_waiting=True)
    store.write(ANN, "m-2")
    store.end(ANN, [("m-3", "failed")])
    for now, waited in (("one\n", "waiting"), ("two\n", None), (None, None)):
        store.close()
        boot.unlink(missing_ok=True)
        if now is not None:
            boot.write_text(now)
        store = SqliteStore(path)
        assert store.messages(ANN) == [("m-1", b"", waited), ("m-2", b"", None), ("m-3", b"", "failed")]
    store.close()


def test_a_full_disk_keeps_nothing_and_says_so(path: Path, store: SqliteStore) -> None:
    """What was there stays; once there is room, it goes on."""
    store.keep(ANN, b"small")
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreFailed, match="full"):
        store.keep(BOB, b"x" * 100_000)
    assert store.conversations() == [(ANN, b"small")]
    store._db.execute("PRAGMA max_page_count = 100000")
    store.keep(BOB, b"x" * 100_000)
    assert len(store.conversations()) == 2


def test_what_could_not_be_forgotten_is_owed(store: SqliteStore) -> None:
    """It can be read meanwhile, and goes before anything else is kept: the id may be a new conversation's by then."""
    store.keep(ANN, b"a")
    store.accept(ANN, "m-1", b"1", is_waiting=False)
    store.keep(BOB, b"b")
    store._db.execute("PRAGMA query_only = 1")
    for key in (ANN, BOB):
        with pytest.raises(StoreFailed):
            store.forget(key)
    with pytest.raises(StoreFailed):
        store.settle()
    assert len(store.conversations()) == 2
    assert store.messages(ANN) == [("m-1", b"1", None)]
    store._db.execute("PRAGMA query_only = 0")
    store.keep(ANN, b"another")
    store.settle()
    assert (store.conversations(), store.messages(ANN)) == ([(ANN, b"another")], [])


def test_another_versions_file_is_refused_and_left_alone(path: Path, store: SqliteStore) -> None:
    """Nobody knows what it means."""
    store.close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    before = path.read_bytes()
    with pytest.raises(StoreFailed, match="another version"):
        SqliteStore(path)
    assert path.read_bytes() == before


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    """And is no damage."""
    with pytest.raises(StoreFailed, match="unable to open"):
        SqliteStore(tmp_path / "nowhere" / "index.db")


def filled(folder: Path) -> list[bytes]:
    """A file with its log, as a kill leaves them: the records in the order in which they were kept."""
    records = [b"record-%d" % number * 20 for number in range(12)]
    store = SqliteStore(folder / "index.db")
    for record in records:
        store.keep(ANN, record)
    for end in ("", "-wal"):  # copied while it is open: nobody has tidied up
        shutil.copy(folder / f"index.db{end}", folder / f"killed.db{end}")
    store.close()
    return records


@pytest.mark.timeout(LONG_S)
def test_a_log_that_is_cut_anywhere_leaves_what_was_kept_before(tmp_path: Path) -> None:
    """At every length the file opens, with one of the records that were kept, the later the longer it is."""
    records = filled(tmp_path)
    whole = (tmp_path / "killed.db-wal").read_bytes()
    cut_at = sorted({*range(0, len(whole), size(997, 1)), *range(max(0, len(whole) - 60), len(whole) + 1)})
    seen = -1
    for length in cut_at:
        path = tmp_path / "cut.db"
        shutil.copy(tmp_path / "killed.db", path)
        Path(f"{path}-wal").write_bytes(whole[:length])
        Path(f"{path}-shm").unlink(missing_ok=True)
        store = SqliteStore(path)
        found = [records.index(record) for _, record in store.conversations()] if not store.was_damaged else []
        store.close()
        number = found[0] if found else -1
        assert number >= seen
        seen = number
        for left in tmp_path.glob("cut.db*"):
            left.unlink()
    print(f"{len(cut_at)} lengths of a log of {len(whole)} bytes")
    assert seen == len(records) - 1


def test_a_name_that_is_no_text_hides_nothing_else(path: Path, store: SqliteStore) -> None:
    """One byte of it was changed on disk: the others are there, and so is its record, which says where it lies."""
    store.keep(ANN, b"a")
    store.keep(BOB, b"b")
    store._db.execute("UPDATE conversation SET subject = CAST(x'61ff6e' AS TEXT) WHERE subject = 'ann'")
    store.close()
    again = SqliteStore(path)
    assert (again.was_damaged, sorted(again.conversations())) == (
        False,
        [(("local", "a\ufffdn", "conv-1"), b"a"), (BOB, b"b")],
    )
    again.close()


@pytest.mark.parametrize("flip", sorted({*range(100), 8004, *range(100, 8192, size(257, 16))}))
def test_a_flipped_byte_is_survived(flip: int, tmp_path: Path) -> None:
    """The file is read as it is, or put aside; never does it end the program."""
    filled(tmp_path)
    data = bytearray((tmp_path / "index.db").read_bytes())
    data[flip % len(data)] ^= 0xFF
    path = tmp_path / "flipped.db"
    path.write_bytes(data)
    if flip in range(60, 64):  # the byte says which version has written it
        with pytest.raises(StoreFailed, match="another version"):
            SqliteStore(path)
        return
    store = SqliteStore(path)
    assert len(store.conversations()) <= 1
    store.keep(BOB, b"b")
    store.close()
    assert store.was_damaged == (tmp_path / "flipped.db.damaged-1").exists()


KEYS = st.sampled_from([ANN, BOB])
IDS = st.sampled_from([f"m-{n}" for n in range(5)])


class Model(RuleBasedStateMachine):
    """Any order of calls, and a close between any two of them."""

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.store = SqliteStore(self.folder / "index.db")
        self.records: dict[Key, bytes] = {}
        self.ids: dict[Key, dict[str, tuple[bytes, Noted]]] = {ANN: {}, BOB: {}}

    @rule(key=KEYS, record=st.binary(max_size=30))
    def keep(self, key: Key, record: bytes) -> None:
        self.store.keep(key, record)
        self.records[key] = record

    @rule(key=KEYS, message_id=IDS, digest=st.binary(max_size=4), is_waiting=st.booleans())
    def accept(self, key: Key, message_id: str, digest: bytes, is_waiting: bool) -> None:
        self.store.accept(key, message_id, digest, is_waiting=is_waiting)
        self.ids[key].pop(message_id, None)
        self.ids[key][message_id] = (digest, "waiting" if is_waiting else None)

    @rule(key=KEYS, message_id=IDS)
    def write(self, key: Key, message_id: str) -> None:
        found = self.ids[key].get(message_id)
        if found is None or found[1] in (None, "waiting"):  # what has ended is not written
            self.store.write(key, message_id)
            if found is not None:
                self.ids[key][message_id] = (found[0], None)

    @rule(key=KEYS, message_id=IDS, outcome=st.sampled_from(["completed", "failed"]))
    def end(self, key: Key, message_id: str, outcome: Any) -> None:
        self.store.end(key, [(message_id, outcome)])
        if message_id in self.ids[key]:
            self.ids[key][message_id] = (self.ids[key][message_id][0], outcome)

    @rule(key=KEYS)
    def forget(self, key: Key) -> None:
        self.store.forget(key)
        self.records.pop(key, None)
        self.ids[key] = {}

    @rule()
    def restart(self) -> None:
        self.store.close()
        self.store = SqliteStore(self.folder / "index.db")

    @invariant()
    def holds(self) -> None:
        if hasattr(self, "store"):
            assert dict(self.store.conversations()) == self.records
            for key, ids in self.ids.items():
                assert self.store.messages(key) == [(name, *found) for name, found in ids.items()]

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            shutil.rmtree(self.folder)


Model.TestCase.settings = settings(max_examples=20, stateful_step_count=20, deadline=None)
TestModel = Model.TestCase
TestModel.__doc__ = "The store does what a dictionary would do."
