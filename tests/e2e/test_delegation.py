"""Cgroups of several brokers in one parent, and of a broker that is not root, in a cgroup that was given to it."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.apart import AS_USER, BROKER_USER, bash, need_root, open_folder, view
from tests.e2e.processes import cli_pid
from tests.kit.broker import Broker, running_broker
from tests.kit.cgroups import can_have_cgroups, cgroups_of, folder_of
from tests.kit.client import connected
from tests.processes import Process, process_table, still_there
from tests.waiting import eventually

HELLO = {"options": {"allowed_tools": ["Bash"]}}
CONFIG: dict[str, Any] = {"session": {"detach_timeout_s": 0}, "pool": {"profiles": {"default": {"warm": 1}}}}
ENTER = ("sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"')
"""And the path of a cgroup: the rest of the words runs in it."""


@contextmanager
def delegated(folder: Path, user: int) -> Iterator[Path]:
    """A cgroup that belongs to ``user``, as systemd makes it for a unit with ``Delegate=yes``."""
    found = folder_of(folder)
    assert found is not None
    parent = found.with_name(f"delegated-{os.getpid()}")
    parent.mkdir()
    for path in (parent, parent / "cgroup.procs", parent / "cgroup.threads", parent / "cgroup.subtree_control"):
        os.chown(path, user, user)
    try:
        yield parent
    finally:
        parent.rmdir()


async def escaped(seconds: int) -> Process:
    """The daemon of an agent that sleeps for so long, wherever it went."""

    def sleeper() -> Process | None:
        return next((row for row in process_table().values() if str(row).endswith(f": sleep {seconds}")), None)

    return await eventually(sleeper)


async def gone(process: Process) -> None:
    """Until it is, or lies about as a zombie of somebody else."""
    await eventually(lambda: not [row for row in still_there([process]) if row.state != "Z"])


def log_says(broker: Broker) -> tuple[bool, str]:
    """Whether cgroups are used, and why not."""
    event = broker.log_events("broker.cgroup")[0]
    return event["used"], event["reason"]


@pytest.mark.parametrize(
    "is_delegated", [True, pytest.param(False, marks=pytest.mark.full)], ids=["delegated", "not delegated"]
)
async def test_a_broker_without_root_uses_what_it_was_given(is_delegated: bool) -> None:
    """In a cgroup of its own user a daemon without marker and group dies with its CLI; else the log says why not."""
    need_root()
    with open_folder() as folder:
        if obstacle := can_have_cgroups(folder):
            pytest.skip(f"no cgroup can be made: {obstacle}")
        os.chown(folder, BROKER_USER, BROKER_USER)
        config = CONFIG | {"cli": {"env": {"SIMULATOR_LEDGER": ""}}}
        with delegated(folder, BROKER_USER) as parent:
            prefix = (*view(), *((*ENTER, str(parent)) if is_delegated else ()), *AS_USER)
            async with running_broker(folder, config, prefix=prefix) as broker:
                used, reason = log_says(broker)
                assert used is is_delegated
                assert bool(reason) is not is_delegated
                assert len(list(parent.glob("broker-*/*/cgroup.procs"))) == is_delegated
                async with connected(broker.url, hello=HELLO) as client:
                    await bash(client, "setsid env -i sleep 4711 </dev/null >/dev/null 2>&1 &")
                    daemon = await escaped(4711)
                    os.kill(cli_pid(broker, client), signal.SIGKILL)
                    await client.until(lambda frame: frame.get("state") == "restored")
                    if is_delegated:
                        await gone(daemon)
                    else:
                        assert still_there([daemon])
                        os.kill(daemon.pid, signal.SIGKILL)
                        await gone(daemon)


async def test_a_broker_sweeps_what_its_own_state_directory_left(tmp_path: Path) -> None:
    """One is killed: the next with its state directory ends what it left; the neighbour's processes are not touched."""
    if obstacle := can_have_cgroups(tmp_path):
        pytest.skip(f"no cgroup can be made: {obstacle}")
    async with running_broker(tmp_path / "neighbour", CONFIG) as neighbour:
        async with connected(neighbour.url, hello=HELLO) as other:
            await other.turn("hello")
            kept = cgroups_of(neighbour.state)
            async with running_broker(tmp_path / "killed", CONFIG) as broker:
                async with connected(broker.url, hello=HELLO) as client:
                    await bash(client, "setsid env -i sleep 4712 </dev/null >/dev/null 2>&1 &")
                    daemon = await escaped(4712)
                assert await broker.stop(signal.SIGKILL) == -signal.SIGKILL
            assert still_there([daemon])
            async with running_broker(tmp_path / "killed", CONFIG) as again:
                await gone(daemon)
                await again.wait_spares(1)
                assert set(kept) <= set(cgroups_of(neighbour.state))
            assert (await other.turn("hello"))["type"] == "broker.turn_completed"
