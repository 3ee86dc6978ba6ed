"""Sessions that are kept apart, on the simulated CLI: in each mode an agent looks for what another one has."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.apart import BROKER_USER, CANARY, FIRST_ID, LOOK, apart, bash, folder_of
from tests.e2e.test_canaries import Canaries
from tests.kit.broker import ROOT, Broker
from tests.kit.client import Client, connected
from tests.oracle import Oracle
from tests.processes import process_table, read_process
from tests.waiting import eventually

MODES = ("uid", "userns")
HELLO: dict[str, Any] = {"options": {"credentials": {"oauth_token": "t"}, "allowed_tools": ["Bash"]}}

pytestmark = [pytest.mark.timeout(120)]


def users(pids: list[int]) -> set[int]:
    """The real user ids of these processes, as far as they still live."""
    found = set()
    for pid in pids:
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            continue
        found |= {int(line.split()[1]) for line in status.splitlines() if line.startswith("Uid:")}
    return found


def processes_of(broker: Broker, client: Client) -> list[int]:
    """The processes of this client's conversation: its directory stands in their environments."""
    place = str(folder_of(broker, client)).encode()
    return [p.pid for p in broker.descendants() if place in Path(f"/proc/{p.pid}/environ").read_bytes()]


def called(text: str) -> list[int]:
    """The pids of living processes whose command line holds ``text``, ours not among them."""
    found = []
    for pid, row in process_table().items():
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if text.encode() in command and row.state != "Z" and pid != os.getpid():
            found.append(pid)
    return found


async def leave_traces(client: Client, new: Canaries) -> None:
    """What an agent has: files here and in /tmp, a process with a secret in its environment and one in its command."""
    work, tmp = new("file in work"), new("file in tmp")
    await bash(
        client, f"echo {work} >secret; echo {tmp} >$TMPDIR/secret; echo {new('file in /tmp')} >/tmp/isolation-test"
    )
    await bash(client, f"KEY={new('environment')} nohup sleep 600 >/dev/null 2>&1 & echo started")
    await bash(client, f"nohup sh -c 'sleep 600; : {new('command line')}' >/dev/null 2>&1 & echo started")


@pytest.mark.parametrize("mode", MODES)
async def test_an_agent_finds_nothing_of_another_one(mode: str, oracle: Oracle) -> None:
    """Not its files, not its processes, not what is in their environments; and it can signal none of them."""
    new = Canaries(oracle)
    async with apart(mode) as broker, connected(broker.url, hello=HELLO) as victim:
        await leave_traces(victim, new)
        own = await bash(victim, LOOK)
        assert set(CANARY.findall(own)) >= {new.made["file in work"], new.made["environment"]}, "the look finds its own"
        pids = processes_of(broker, victim)
        assert len(pids) >= 4
        async with connected(broker.url, hello=HELLO) as spy:
            assert new.seen_in(await bash(spy, LOOK)) == set()
            there = folder_of(broker, victim)
            shown = await bash(
                spy, f"ls {broker.state}/sessions {there}; cat {there}/work/secret; cat {broker.state}/lock"
            )
            assert there.name not in shown.replace(f"{there}", ""), shown
            assert new.seen_in(shown) == set()
            signals = await bash(spy, "; ".join(f"kill -0 {pid} && echo could" for pid in pids) + "; true")
            assert "could" not in signals
            visible = (await bash(spy, "cd /proc && ls -d [0-9]*")).split()
            if mode == "uid":
                assert not set(visible) & {str(pid) for pid in (broker.pid, *pids)}
            else:
                assert len(visible) < 10, "a process number space of its own"
    is_covered = not ROOT.is_relative_to("/tmp")
    assert Path("/tmp/isolation-test").exists() is not is_covered


async def test_without_isolation_the_look_finds_what_another_agent_has(oracle: Oracle) -> None:
    """The counter-proof: as one system user an agent reads files and processes of another one."""
    new = Canaries(oracle)
    async with apart("none") as broker, connected(broker.url, hello=HELLO) as victim:
        await leave_traces(victim, new)
        async with connected(broker.url, hello=HELLO) as spy:
            found = CANARY.findall(await bash(spy, f"{LOOK}; cat {folder_of(broker, victim)}/work/secret"))
            assert set(found) >= {new.made[name] for name in ("file in work", "environment", "command line")}
            await bash(spy, "rm /tmp/isolation-test")


async def test_a_session_has_its_own_places_and_nothing_of_the_brokers_environment(oracle: Oracle) -> None:
    """HOME, configuration, working and temporary directory are the session's own, closed to other users."""
    new = Canaries(oracle)
    secret = new("the broker's environment")
    async with apart("none", environment={"BROKER_SECRET": secret}) as broker:
        async with connected(broker.url, hello=HELLO) as one, connected(broker.url, hello=HELLO) as other:
            for client in (one, other):
                own = folder_of(broker, client)
                shown = await bash(client, "echo $HOME $CLAUDE_CONFIG_DIR $TMPDIR $XDG_RUNTIME_DIR $PWD; env")
                first, _, environment = shown.partition("\n")
                assert first.split() == [str(own / part) for part in ("home", "home/.claude", "tmp", "tmp", "work")]
                assert secret not in environment
                assert all(path.stat().st_mode & 0o077 == 0 for path in (own, *own.iterdir()))
            assert folder_of(broker, one) != folder_of(broker, other)


async def test_each_session_has_a_system_user_of_its_own() -> None:
    """``uid``: process and files belong to an id that no other living session has; it gains no privileges."""
    async with apart("uid") as broker:
        async with connected(broker.url, hello=HELLO) as one, connected(broker.url, hello=HELLO) as other:
            ids = set()
            for client in (one, other):
                shown = await bash(client, "id -u; id -g; id -G; grep NoNewPrivs: /proc/self/status; touch made")
                user, group, groups, privileges = shown.splitlines()
                assert user == group == groups
                assert privileges.split()[1] == "1"
                made = folder_of(broker, client) / "work" / "made"
                assert made.stat().st_uid == made.stat().st_gid == int(user) >= FIRST_ID
                ids.add(user)
            assert len(ids) == 2


async def test_where_nothing_may_be_mounted_users_still_keep_files_and_processes_apart(oracle: Oracle) -> None:
    """``uid`` without the right to mount: foreign command lines can be read, but no file and no environment."""
    new = Canaries(oracle)
    drop = ("setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin", "--")
    async with apart("uid", prefix=drop) as broker, connected(broker.url, hello=HELLO) as victim:
        assert broker.log_events("broker.isolation")[0]["processes_hidden"] is False
        await leave_traces(victim, new)
        (foreign, *_), there = processes_of(broker, victim), folder_of(broker, victim)
        async with connected(broker.url, hello=HELLO) as spy:
            assert new.seen_in(await bash(spy, LOOK)) == {new.made["command line"]}
            refused = await bash(
                spy, f"ls {broker.state}/sessions {there}; cat /proc/{foreign}/environ; kill -0 {foreign}"
            )
            assert refused.count("Permission denied") == 3
            assert "not permitted" in refused
    Path("/tmp/isolation-test").unlink()


async def test_a_user_namespace_has_the_brokers_user_and_no_capability() -> None:
    """``userns``: the mounts that hide the others cannot be taken away, not even in another namespace below."""
    async with apart("userns") as broker:
        async with connected(broker.url, hello=HELLO) as one, connected(broker.url, hello=HELLO) as other:
            shown = await bash(one, "id -u; grep -E 'CapEff|CapBnd|NoNewPrivs' /proc/self/status")
            assert [line.split()[-1] for line in shown.splitlines()] == [str(BROKER_USER), "0" * 16, "0" * 16, "1"]
            state = broker.state
            tried = await bash(one, f"umount {state}; unshare -Urm umount -l {state}; ls {state}/sessions")
            assert folder_of(broker, one).name in tried
            assert folder_of(broker, other).name not in tried


@pytest.mark.parametrize("mode", MODES)
async def test_nothing_of_a_session_outlives_it(mode: str) -> None:
    """A daemon that left its group and its environment behind dies with its session."""
    async with apart(mode, {"session": {"detach_timeout_s": 0}}) as broker:
        async with connected(broker.url, hello=HELLO) as client:
            name = f"outlives-{os.getpid()}-{mode}"
            await bash(client, f"(env -i setsid bash -c 'exec -a {name} sleep 600' >/dev/null 2>&1 &); echo")
            await eventually(lambda: called(name))
            user = folder_of(broker, client).stat().st_uid
        await eventually(lambda: not called(name), 20)
        if mode == "uid":
            await eventually(lambda: user not in users([process.pid for process in broker.descendants()]))
        await broker.wait_spares(2)


@pytest.mark.parametrize("mode", MODES)
async def test_a_killed_broker_takes_its_processes_along(mode: str) -> None:
    """kill -9: the CLIs die with it, and what they had started is gone after the next start at the latest."""
    deaf = {"cli": {"env": {"SIMULATOR_FAULTS": "ignore_eof"}}}  # only PDEATHSIG ends it
    async with apart(mode, deaf) as broker:
        async with connected(broker.url, hello=HELLO) as client:
            name = f"killed-{os.getpid()}-{mode}"
            await bash(client, f"(env -i setsid bash -c 'exec -a {name} sleep 600' >/dev/null 2>&1 &); echo")
            pids = [process.pid for process in broker.descendants()]
            daemons = called(name)
            os.kill(broker.pid, signal.SIGKILL)
            assert await broker.ended() == -signal.SIGKILL
            await eventually(lambda: all(is_gone(pid) for pid in pids if pid not in daemons))
        if mode == "uid":
            assert users(daemons) == {folder_of(broker, client).stat().st_uid}
            async with broker.extra["again"]():
                await eventually(lambda: all(is_gone(daemon) for daemon in daemons))
        await eventually(lambda: all(is_gone(daemon) for daemon in daemons))


def is_gone(pid: int) -> bool:
    """Whether it is dead, reaped or not."""
    row = read_process(pid)
    return row is None or row.state == "Z"


@pytest.mark.parametrize("mode", MODES)
async def test_a_killed_cli_is_told_as_killed_and_started_again(mode: str) -> None:
    """Death, its reason and the next process in the same directory are as without isolation."""
    async with apart(mode) as broker, connected(broker.url, hello=HELLO) as client:
        await bash(client, "echo kept >file; id -u >user")
        await client.say("[[sim tokens=200 itl_ms=20]] doomed", "m-doomed")
        await client.until(lambda f: f["type"] == "stream_event" and "delta" in f["event"])
        session = client.welcome["cli"]["session_id"]
        os.kill(max(called(f"={session}")), signal.SIGKILL)
        end = await client.terminal("m-doomed")
        assert (end["type"], end["reason"]) == ("broker.turn_failed", "cli_exited")
        assert "signal 9" in str(end)
        assert await bash(client, "cat file; test $(cat user) = $(id -u) && echo same") == "kept\nsame"


@pytest.mark.parametrize(("mode", "code"), [("none", 143), ("uid", 143), ("userns", -15)])
async def test_the_stop_ladder_reaches_the_cli(mode: str, code: int) -> None:
    """SIGTERM comes to a CLI that takes no end of its stdin for an answer, behind whatever it was started through."""
    environment = {"SIMULATOR_FAULTS": "ignore_eof"}
    config = {"stop": {"eof_grace_s": 0.2, "term_grace_s": 20}, "cli": {"env": environment}}
    async with apart(mode, config) as broker:
        started = time.monotonic()
        assert await broker.stop() == 0
        assert time.monotonic() - started < 15
        assert {event["returncode"] for event in broker.log_events("process.gone")} == {code}


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
async def test_the_memory_that_is_watched_is_the_clis(mode: str) -> None:
    """A spare that swells is recycled: what stands before the CLI is far smaller than the bound."""
    config = {"pool": {"profiles": {"default": {"warm": 1, "max_rss_mb": 4}}}}
    async with apart(mode, config) as broker:
        await eventually(lambda: broker.log_events("pool.recycled"), 20)
        assert broker.log_events("pool.recycled")[0]["reason"] == "rss"


async def test_a_starting_process_of_another_user_has_the_lower_priority() -> None:
    """``uid``: a spare that starts yields to those that serve, and takes its usual priority when it is ready."""
    config = {"cli": {"env": {"SIMULATOR_FAULTS": "slow_start=1"}}}
    async with apart("uid", config, warm=1, wait_ready=False) as broker:
        await eventually(
            lambda: len(starting := broker.descendants()) == 1 and min(users([starting[0].pid])) >= FIRST_ID
        )
        (spare,) = [process.pid for process in broker.descendants()]
        assert os.getpriority(os.PRIO_PROCESS, spare) == 10
        await broker.wait_spares(1)
        await eventually(lambda: os.getpriority(os.PRIO_PROCESS, spare) == 0, 5)


async def test_orphans_in_a_namespace_are_reaped() -> None:
    """``userns``: process 1 of the namespace takes care of what commands leave behind; no zombies gather."""
    async with apart("userns") as broker, connected(broker.url, hello=HELLO) as client:
        for _ in range(3):
            await bash(client, "(setsid sleep 0.05 &); (setsid true &); echo")

        await eventually(
            lambda: not [p for p in broker.descendants() if p.state == "Z"] and not called("sleep 0.05"), 10
        )
