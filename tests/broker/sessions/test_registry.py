"""A fork and the end of its parent: there is no branch of a conversation that went while it was copied.  The drain."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from broker.auth import Identity
from broker.config.policy import Policy
from broker.config.settings import Settings
from broker.config.tree import Config
from broker.errors import BrokerError
from broker.metrics import Metrics
from broker.pool.pool import Pool
from broker.processes.child import Again
from broker.processes.launcher import Launcher
from broker.processes.program import Cli
from broker.processes.session_directory import SessionDirectory
from broker.sessions.entry import Entry
from broker.sessions.registry import Registry
from broker.sessions.succession import Succession
from protocol.codes import CloseCode, ErrorCode
from protocol.errors import ConnectionRefused
from tests.waiting import eventually

ANN = Identity("local", "ann", "controller", Policy())


class Parent:
    """A registry with one conversation, and what happens to that one while a fork copies it."""

    def __init__(self, tmp_path: Path) -> None:
        settings, metrics = Settings(Config()), Metrics()
        launcher = Launcher(Cli(("true",), "0", simulated=True), tmp_path, {})
        self.child = SessionDirectory(tmp_path / "child", is_kept=True)
        self.registry = Registry(settings, Pool(settings, launcher, metrics), metrics)
        self.copied: Again | BrokerError | None = Again(self.child, "c", fork_of="p")
        self.is_deleted_meanwhile = True
        self.registry._branch = self._branch  # type: ignore[method-assign]

    async def _branch(self, parent: Entry) -> Again | None:
        self.child.create()
        if self.is_deleted_meanwhile:
            self.registry.delete(parent)
        if isinstance(self.copied, BrokerError):
            raise self.copied
        return self.copied

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Entry]:
        """The conversation, in a registry that runs."""
        async with anyio.create_task_group() as group:
            group.start_soon(self.registry.run)
            await eventually(lambda: self.registry._group)
            yield self.registry.create("p", ANN, "ann")
            group.cancel_scope.cancel()


@pytest.mark.parametrize("outcome", ["copied", "nothing to copy", "cannot be copied"])
async def test_a_fork_of_a_conversation_that_is_deleted_meanwhile_is_refused(tmp_path: Path, outcome: str) -> None:
    """4504, as after the delete; a copy that may lack anything is wiped, and no conversation begins with it."""
    parent = Parent(tmp_path)
    if outcome == "nothing to copy":
        parent.copied = None
    if outcome == "cannot be copied":
        parent.copied = BrokerError(ErrorCode.BIND_FAILED, "gone", close=CloseCode.BIND_FAILED)
    async with parent.running() as entry:
        with pytest.raises(ConnectionRefused) as refused:
            await parent.registry.fork(entry, ANN, "ann")
        assert refused.value.close == CloseCode.UNKNOWN_SESSION
        assert parent.registry.of("local", None) == []
    assert parent.child.root.exists() is (outcome != "copied")


async def test_a_fork_of_one_that_stays_keeps_its_refusal(tmp_path: Path) -> None:
    """What cannot be copied is told as that."""
    parent = Parent(tmp_path)
    parent.is_deleted_meanwhile = False
    parent.copied = BrokerError(ErrorCode.BIND_FAILED, "too much", close=CloseCode.BIND_FAILED)
    async with parent.running() as entry:
        with pytest.raises(BrokerError, match="too much"):
            await parent.registry.fork(entry, ANN, "ann")


async def test_a_conversation_that_is_being_wiped_has_no_branch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its id may still be known: nobody keeps its directory any more."""
    parent = Parent(tmp_path)
    parent.is_deleted_meanwhile = False
    monkeypatch.setattr(Succession, "directory", SessionDirectory(tmp_path / "parent"))
    async with parent.running() as entry:
        with pytest.raises(ConnectionRefused):
            await parent.registry.fork(entry, ANN, "ann")
    assert not parent.child.root.exists()


@pytest.mark.parametrize(("drains", "frames"), [(False, 2), (True, 1)])
async def test_a_result_that_comes_after_the_drain_is_no_second_terminal(
    tmp_path: Path, drains: bool, frames: int
) -> None:
    """Its turn has failed already: the line is forwarded, and nothing is said of a turn of the CLI's own."""
    parent = Parent(tmp_path)
    async with parent.running() as entry:
        if drains:
            await parent.registry.drain(0)
        entry.session.on_lines([b'{"type":"result","subtype":"success"}'])
        assert entry.session.log.head == frames
