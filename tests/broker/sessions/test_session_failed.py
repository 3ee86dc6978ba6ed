"""A bug in a session's task, and what the index owes: neither is told as something else, nor is it for ever."""

import math
import time
from pathlib import Path

import pytest

from broker.sessions import registry
from broker.sessions.sleepers import Sleepers
from broker.sessions.stores.sqlite import SqliteStore
from protocol.frames import UserMessage
from protocol.wire import text_of
from tests.broker.visitors import Tab, attached, ends, hello, is_over, talked
from tests.kit.stage import SETTLES_WITHIN_S, Stage, stage
from tests.oracle import Oracle
from tests.waiting import eventually

LONG = "[[sim tokens=3000 itl_ms=10]] word"


def with_index(found: Stage, folder: Path) -> SqliteStore:
    """As ``broker.app`` gives it to a registry."""
    store = SqliteStore(folder / "index.db")
    found.has_opened(len(list(folder.glob("index.db*"))))
    found.registry._store = store
    found.registry._sleepers._store = store
    return store


async def test_a_bug_is_told_as_one_and_the_conversation_is_kept(tmp_path: Path, oracle: Oracle) -> None:
    """The running message and the queued one end with ``internal``, clients are closed; who comes back goes on."""
    oracle.may_log_tracebacks = True
    async with stage(tmp_path, is_small=False, stop={"eof_grace_s": 0.1, "term_grace_s": 1.0}) as found:
        store = with_index(found, tmp_path)
        entry, tab = await talked(found)
        entry.session.submit(UserMessage(LONG, id="m-1"), tab, 0.0)
        entry.session.submit(UserMessage("next", id="m-2"), tab, 0.0)
        await eventually(lambda: entry.session.log.head > 20, SETTLES_WITHIN_S)

        def bug(now: float) -> None:
            raise RuntimeError("a bug")

        entry.session.tick = bug  # type: ignore[method-assign]
        entry.tenure.wake()
        await eventually(lambda: tab.is_closed, SETTLES_WITHIN_S)
        assert (ends(entry)["m-1"], ends(entry)["m-2"]) == (1, 1)
        frames, _ = entry.session.log.read(entry.session.log.tail, 1 << 24)
        assert sum('"reason":"internal"' in text_of(frame).decode() for frame in frames) == 2
        again = await attached(found, hello(session={"id": "known", "mode": "resume"}), later := Tab())
        assert again is not entry
        assert again.place is not None
        assert entry.place is not None
        assert again.place.directory.root == entry.place.directory.root
        again.session.submit(UserMessage("hello again", id="m-3"), later, time.monotonic())
        await eventually(lambda: again.session.turns.completed == 1, SETTLES_WITHIN_S)
        found.registry.delete(again)
        await found.settled()
        assert store.conversations() == []
    store.close()


async def test_a_delete_that_the_index_did_not_take_is_done_once_it_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a conversation in memory and of one that nobody came back to: neither is there after a restart."""
    monkeypatch.setattr(registry, "SWEEP_EVERY_S", 0.02)
    async with stage(tmp_path, is_small=False) as found:
        store = with_index(found, tmp_path)
        entry, _ = await talked(found)
        store.keep(("ann", "ann", "old"), entry.session.journal.record)
        sleepers: Sleepers = found.registry._sleepers
        sleepers.lay_down(("ann", "ann", "old"), entry.session.journal.record)
        store._db.execute("PRAGMA query_only = 1")
        found.registry.delete(entry)
        (asleep,) = sleepers.of("ann", None)
        sleepers.forget(asleep)
        await found.settled()
        assert len(store.conversations()) == 2
        store._db.execute("PRAGMA query_only = 0")
        await eventually(lambda: store.conversations() == [], SETTLES_WITHIN_S)
    store.close()


async def test_a_directory_is_quiet_once_its_last_process_is_gone(tmp_path: Path) -> None:
    """However long ago the conversation was used: until then something may write there."""
    async with stage(tmp_path, is_small=False, session={"detach_timeout_s": 0}) as found:
        entry, tab = await talked(found)
        assert entry.place is not None
        assert entry.place.quiet_since == math.inf
        process = entry.session.process
        entry.tenure.detach(tab)
        await eventually(lambda: is_over(entry), SETTLES_WITHIN_S)
        await eventually(lambda: entry.place is not None and entry.place.quiet_since < math.inf, SETTLES_WITHIN_S)
        assert process is not None
        assert process.exited.is_set()
        assert entry.last_active < entry.place.quiet_since <= time.monotonic()
        found.registry.delete(entry)
        await found.settled()
