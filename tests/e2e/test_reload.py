"""SIGHUP: the configuration is read again; what can change does, the rest is named, a mistake changes nothing."""

import hashlib
import json
import signal
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.e2e.beside import neighbour
from tests.kit.broker import Broker, configuration, running_broker, toml
from tests.kit.client import connected
from tests.kit.supervisor import supervisor
from tests.waiting import eventually

ROTATIONS = 30
ORIGIN = "https://chat.example.com"


def rewritten(broker: Broker, changes: dict[str, Any]) -> None:
    """The broker's file with these settings over the kit's."""
    file = broker.state.parent / "broker.toml"
    file.write_text(toml(configuration(broker.state, broker.ledger, changes)))


async def hung_up(broker: Broker, event: str = "config.reloaded") -> dict[str, Any]:
    """Send SIGHUP; the log line of that event that follows."""
    before = len(broker.log_events(event))
    broker.popen.send_signal(signal.SIGHUP)
    await eventually(lambda: len(broker.log_events(event)) > before)
    return broker.log_events(event)[-1]


async def reloaded(broker: Broker, changes: dict[str, Any]) -> list[str]:
    """Change the file and have it read; the keys that took effect."""
    rewritten(broker, changes)
    changed: list[str] = (await hung_up(broker))["changed"]
    return changed


def models(broker: Broker) -> list[str]:
    """What /v1/models lists."""
    return [row["id"] for row in json.loads(broker.get("/v1/models")[1])["data"]]


async def test_lists_of_the_ports(tmp_path: Path) -> None:
    """Models, origins and hosts hold from the next request on."""
    async with running_broker(tmp_path) as broker:
        headers = {"Origin": ORIGIN}
        with pytest.raises(InvalidStatus, match="403"):
            async with connected(broker.url, headers=headers):
                pass
        assert broker.get("/livez", headers={"Host": "chat.example.com"})[0] == 403
        changes = {
            "models": ["haiku"],
            "server": {"allowed_origins": [ORIGIN], "allowed_hosts": ["chat.example.com"]},
        }
        assert await reloaded(broker, changes) == ["models", "server.allowed_origins", "server.allowed_hosts"]
        assert models(broker) == ["haiku"]
        assert broker.get("/livez", headers={"Host": "chat.example.com"})[0] == 200
        async with connected(broker.url, headers=headers, hello={}) as client:
            await client.turn("hello")


async def test_the_policy_holds_from_the_next_hello_on(tmp_path: Path) -> None:
    """Who is connected keeps what was allowed; the next one is judged by the new policy."""
    wish = {"options": {"model": "opus"}}
    async with running_broker(tmp_path) as broker, connected(broker.url, hello=wish) as before:
        assert await reloaded(broker, {"policy": {"models": ["sonnet"]}}) == ["policy.models"]
        with pytest.raises(ConnectionClosed) as refused:
            async with connected(broker.url, hello=wish):
                pass
        assert refused.value.rcvd is not None
        assert refused.value.rcvd.code == 4503
        assert (await before.turn("still here"))["type"] == "broker.turn_completed"


async def test_new_sessions_get_the_new_limits(tmp_path: Path) -> None:
    """A session keeps those that it began with, and its welcome says so."""
    async with running_broker(tmp_path, {"turn": {"queue": 3}}) as broker:
        place = {"session": {"mode": "open", "id": "old"}}
        async with connected(broker.url, hello=place) as first:
            assert first.welcome["limits"]["queue"] == 3
            assert await reloaded(broker, {"turn": {"queue": 5}}) == ["turn.queue"]
            async with connected(broker.url, hello=place) as again, connected(broker.url, hello={}) as fresh:
                assert [client.welcome["limits"]["queue"] for client in (again, fresh)] == [3, 5]


async def test_the_pool_follows(tmp_path: Path) -> None:
    """More spares are started at once, and up to the new limit in all."""
    pool = {"max_processes": 2, "profiles": {"default": {"warm": 1}}}
    async with running_broker(tmp_path, {"pool": pool}) as broker:
        await broker.wait_spares(1)
        pool = {"max_processes": 4, "profiles": {"default": {"warm": 3}}}
        assert await reloaded(broker, {"pool": pool}) == ["pool.max_processes", "pool.profiles.default.warm"]
        await broker.wait_spares(3)
        assert broker.get("/readyz")[0] == 200


async def test_what_needs_a_start_is_named_and_left_alone(tmp_path: Path) -> None:
    """One line names the keys; the rest of the file takes effect."""
    async with running_broker(tmp_path) as broker:
        rewritten(
            broker,
            {
                "models": ["opus"],
                "server": {"listen": "127.0.0.1:1"},
                "cli": {"scrub": "off"},
                "state": {"dir": str(tmp_path / "elsewhere")},
                "pool": {"profiles": {"default": {"model": "opus"}, "reader": {"model": "haiku"}}},
            },
        )
        line = await hung_up(broker, "config.ignored")
        assert set(line["keys"]) == {
            "server.listen", "cli.scrub", "state.dir", "pool.profiles.default.model", "pool.profiles.reader",
        }  # fmt: skip
        assert models(broker) == ["opus"]
        async with connected(broker.url, hello={}) as client:
            await client.turn("hello")
        assert not (tmp_path / "elsewhere").exists()


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": ({"server": {"listen_on": 1}}, "server.listen_on"),
    "wrong": ({"turn": {"idle_timeout_s": -1}}, "turn.idle_timeout_s"),
    "contradiction": ({"pool": {"max_processes": 1}}, "pool.profiles.*.warm"),
    "with what has to stay": (
        {"policy": {"credentials": "client"}, "cli": {"env": {"ANTHROPIC_API_KEY": ""}}}, "cli.env.ANTHROPIC_API_KEY",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
async def test_a_mistake_changes_nothing(name: str, tmp_path: Path) -> None:
    """The log names the key; models of the same file are not taken, the next good file is."""
    changes, key = MISTAKES[name]
    start = {"policy": {"credentials": "server"}, "cli": {"env": {"ANTHROPIC_API_KEY": "canary"}}}
    async with running_broker(tmp_path, start) as broker:
        before = models(broker)
        rewritten(broker, start | changes | {"models": ["opus"]})
        if name == "with what has to stay":
            file = tmp_path / "broker.toml"
            file.write_text(file.read_text().replace('"ANTHROPIC_API_KEY" = ""', ""))
        line = await hung_up(broker, "config.refused")
        assert line["key"] == key
        assert models(broker) == before
        assert broker.log_events("config.reloaded") == []
        rewritten(broker, start | {"models": ["opus"]})
        await hung_up(broker)
        assert models(broker) == ["opus"]
        assert "canary" not in broker.log_text()


async def test_a_working_directory_that_is_gone_changes_nothing(tmp_path: Path) -> None:
    """Nothing can be read from there: that is told, and the broker goes on."""
    folder = tmp_path / "gone"
    folder.mkdir()
    async with running_broker(tmp_path, prefix=("sh", "-c", f'cd {folder} && exec "$@"', "sh")) as broker:
        folder.rmdir()
        await hung_up(broker, "config.refused")
        async with connected(broker.url, hello={}) as client:
            await client.turn("hello")


async def test_variables_win_over_the_file(tmp_path: Path) -> None:
    """The order of a start holds for a reload: file, variables, flags."""
    environment = {"BROKER__MODELS": '["haiku"]'}
    async with running_broker(tmp_path, environment=environment) as broker:
        assert await reloaded(broker, {"models": ["opus"]}) == []
        assert models(broker) == ["haiku"]


async def test_tenants_get_the_new_policy(tmp_path: Path) -> None:
    """What tenants.toml does not say of a tenant follows the file above it."""
    token = "canary-of-a-tenant"
    digest = hashlib.sha256(token.encode()).hexdigest()
    (tmp_path / "tenants.toml").write_text(f'[tenants.acme]\ntokens = [{{hash = "sha256:{digest}"}}]\n')
    start = {"auth": {"mode": "tokens"}, "pool": {"isolation": "none"}}
    headers, wish = {"Authorization": f"Bearer {token}"}, {"options": {"model": "opus"}}
    async with running_broker(tmp_path, start) as broker:
        async with connected(broker.url, headers=headers, hello=wish):
            pass
        await reloaded(broker, start | {"policy": {"models": ["sonnet"]}})
        with pytest.raises(ConnectionClosed):
            async with connected(broker.url, headers=headers, hello=wish):
                pass
        (tmp_path / "tenants.toml").write_text("[tenants\n")
        broker.popen.send_signal(signal.SIGHUP)
        await eventually(lambda: broker.log_events("config.refused"))


async def test_reloads_under_load_drop_nobody(tmp_path: Path) -> None:
    """A stream runs on without a gap while the file changes again and again, and every change takes effect."""
    async with running_broker(tmp_path) as broker, neighbour(broker):
        for rotation in range(ROTATIONS):
            await reloaded(broker, {"models": [f"model-{rotation}"], "turn": {"queue": rotation}})
            assert models(broker) == [f"model-{rotation}"]
            async with connected(broker.url, hello={"options": {"lazy": True}}) as client:
                assert client.welcome["limits"]["queue"] == rotation


async def test_a_supervisor_hears_of_it(tmp_path: Path) -> None:
    """RELOADING with the time, then READY again, for a good file as for a bad one."""
    with supervisor(tmp_path / "notify") as told:
        async with running_broker(tmp_path, environment={"NOTIFY_SOCKET": str(tmp_path / "notify")}) as broker:
            await eventually(lambda: told.states == ["READY=1"])
            await hung_up(broker)
            await eventually(lambda: told.states == ["READY=1", "RELOADING=1", "READY=1"])
            rewritten(broker, {"server": {"nonsense": 1}})
            await hung_up(broker, "config.refused")
            await eventually(lambda: told.states[3:] == ["RELOADING=1", "READY=1"])
            reloading = [lines for lines in told.messages if lines[0] == "RELOADING=1"]
            assert all(lines[1].startswith("MONOTONIC_USEC=") for lines in reloading)
            assert await broker.stop() == 0
        assert told.states[-1] == "STOPPING=1"
