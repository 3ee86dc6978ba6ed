"""What is refused before the upgrade, by Origin, Host, readiness and number, and who is closed for saying nothing."""

import asyncio
import base64
import hashlib
import json
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from http.client import HTTPMessage, parse_headers
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import pytest
from websockets.exceptions import ConnectionClosed

from tests.kit.broker import Broker, running_broker, started_broker
from tests.kit.client import connected
from tests.oracle import Oracle
from tests.waiting import eventually

TOKEN = "brk_origins-0123456789"
BEARER = "broker.bearer." + base64.urlsafe_b64encode(TOKEN.encode()).decode().rstrip("=")
CREDENTIALS = {
    "none": ["Sec-WebSocket-Protocol: broker.v1"],
    "header": ["Sec-WebSocket-Protocol: broker.v1", f"Authorization: Bearer {TOKEN}"],
    "subprotocol": [f"Sec-WebSocket-Protocol: broker.v1, {BEARER}"],
}
PER_ADDRESS, IN_ALL, HELLO_TIMEOUT_S = 4, 6, 1.5

# "P" stands for the broker's port, "Q" for another one.
OWN_ORIGINS = [None, "http://127.0.0.1:P", "http://localhost:P", "http://[::1]:P", "https://chat.example",
               "http://localhost:3000"]  # fmt: skip
FOREIGN_ORIGINS = [
    "", "null", "*", "undefined", "file://", "data:", "javascript:alert(1)", "chrome-extension://abcdefgh",
    "http://127.0.0.1", "http://127.0.0.1:Q", "http://localhost", "http://localhost:Q", "http://[::1]",
    "https://127.0.0.1:P", "https://localhost:P", "ws://localhost:P", "http://LOCALHOST:P", "HTTP://localhost:P",
    "http://localhost.:P", "http://localhost:P/", "http://localhost:P#", "http://localhost:P?a", "http://localhost:P:P",
    "http://user@localhost:P", "http://localhost:P@evil.example", "http://localhost.evil.example:P",
    "http://127.0.0.1.evil.example:P", "http://evil-localhost:P", "http://localhost:P.evil.example",
    "http://0.0.0.0:P", "http://127.1:P", "http://127.0.0.2:P", "http://2130706433:P", "http://0x7f.0.0.1:P",
    "http://[::ffff:127.0.0.1]:P", "http://evil.example", "http://evil.example:P", "http://chat.example",
    "https://chat.example:443", "https://chat.example.", "https://chat.example/", "https://CHAT.example",
    "https://x.chat.example", "https://evilchat.example", "https://chat.example.evil.example",
    "https://chat.example https://evil.example", "https://evil.example, https://chat.example", "http://localhost:P\u00e9",
]  # fmt: skip
OWN_HOSTS = ["127.0.0.1:P", "localhost:P", "LocalHost:P", "[::1]:P", "chat.example", "chat.example:1"]
FOREIGN_HOSTS = [
    None, "", "127.0.0.1", "127.0.0.1:Q", "localhost", "localhost:Q", "localhost:", "[::1]", "0.0.0.0:P", "127.0.0.2:P",
    "127.1:P", "evil.example", "evil.example:P", "localhost.evil.example:P", "localhost:P.evil.example",
    "evil.example@localhost:P", "localhost:P@evil.example", "localhost:P/", "localhost :P", "http://localhost:P",
    "x.chat.example", "chat.example.evil.example", "[::ffff:127.0.0.1]:P", "localhost:P, evil.example",
    "loc\u00e4lhost:P",
]  # fmt: skip


class Reply(NamedTuple):
    """The head of an answer to a handshake."""

    status: int
    headers: HTTPMessage


@asynccontextmanager
async def tcp(port: int, source: str = "127.0.0.1") -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection on which nothing was said; reset at the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def upgrade(
    stream: tuple[asyncio.StreamReader, asyncio.StreamWriter], host: str | None, lines: list[str]
) -> Reply:
    """Ask for the upgrade with these header lines."""
    fixed = ["Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13",
             "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="]  # fmt: skip
    hosts = [] if host is None else [f"Host: {host}"]
    stream[1].write("\r\n".join(["GET /v1/chat/ws HTTP/1.1", *hosts, *fixed, *lines, "", ""]).encode())
    async with asyncio.timeout(10):
        line, _, head = (await stream[0].readuntil(b"\r\n\r\n")).partition(b"\r\n")
    return Reply(int(line.split()[1]), parse_headers(BytesIO(head)))


async def status(broker: Broker, host: str | None, lines: list[str]) -> int:
    """The status of one handshake on a connection of its own."""
    async with tcp(broker.port) as stream:
        return (await upgrade(stream, host, lines)).status


def filled(value: str, port: int) -> str:
    """``value`` with its ports."""
    return value.replace("P", str(port)).replace("Q", str(port % 60000 + 1))


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory, oracle: Oracle) -> Iterator[Broker]:
    """A broker on loopback with one more name and two more origins."""
    folder = tmp_path_factory.mktemp("origins")
    oracle.canaries.add(TOKEN)
    digest = hashlib.sha256(TOKEN.encode()).hexdigest()
    (folder / "tenants.toml").write_text(f'[tenants.acme]\ntokens = [{{hash = "sha256:{digest}"}}]\n')
    config = {
        "auth": {"mode": "tokens", "file": "tenants.toml"},
        "server": {"allowed_origins": ["https://chat.example", "http://localhost:3000"],
                   "allowed_hosts": ["chat.example"]},
        "pool": {"isolation": "none", "profiles": {"default": {"warm": 1}}},
    }  # fmt: skip
    with started_broker(folder, config) as found:
        oracle.allow(pid=found.pid)
        yield found


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory, oracle: Oracle) -> Iterator[Broker]:
    """A broker that bears few silent sockets, and those not long."""
    limits = {"hello_timeout_s": HELLO_TIMEOUT_S, "max_unauthenticated_per_ip": PER_ADDRESS,
              "max_unauthenticated": IN_ALL}  # fmt: skip
    folder = tmp_path_factory.mktemp("narrow")
    (folder / "tenants.toml").write_text("")
    config = {
        "server": limits,
        "auth": {"mode": "tokens", "file": "tenants.toml"},
        "pool": {"isolation": "none", "profiles": {"default": {"warm": 1}}},
    }
    with started_broker(folder, config) as found:
        oracle.allow(pid=found.pid)
        yield found


# -- Origin and Host -------------------------------------------------------------------------------------------------


def test_the_tables_are_large() -> None:
    """At least forty values of Origin."""
    assert len(OWN_ORIGINS) + len(FOREIGN_ORIGINS) >= 40


@pytest.mark.parametrize("kind", CREDENTIALS)
async def test_only_own_origins_connect(broker: Broker, kind: str) -> None:
    """A page of this broker, of the list or no browser gets in, whatever the credential; every other Origin is 403."""
    host, wrong = f"127.0.0.1:{broker.port}", {}
    table = [(origin, 101) for origin in OWN_ORIGINS] + [(origin, 403) for origin in FOREIGN_ORIGINS]
    for origin, expected in table:
        lines = [] if origin is None else [f"Origin: {filled(origin, broker.port)}"]
        found = await status(broker, host, lines + CREDENTIALS[kind])
        if found != expected:
            wrong[origin] = found
    assert wrong == {}
    own = f"Origin: http://localhost:{broker.port}"
    assert await status(broker, host, [own, own, *CREDENTIALS[kind]]) == 403


@pytest.mark.parametrize("kind", CREDENTIALS)
async def test_only_own_hosts_are_answered(broker: Broker, kind: str) -> None:
    """The loopback names at the real port and the configured name are answered; any other Host, or none, is 403."""
    wrong = {}
    table = [(host, 101) for host in OWN_HOSTS] + [(host, 403) for host in FOREIGN_HOSTS]
    for host, expected in table:
        found = await status(broker, host and filled(host, broker.port), CREDENTIALS[kind])
        if found != expected:
            wrong[host] = found
    assert wrong == {}
    second = [f"Host: localhost:{broker.port}", *CREDENTIALS[kind]]
    assert await status(broker, f"localhost:{broker.port}", second) == 403


async def test_a_foreign_page_learns_nothing_about_tokens(broker: Broker) -> None:
    """From a foreign Origin a good and a bad token are both 403."""
    host, origin = f"127.0.0.1:{broker.port}", "Origin: http://evil.example"
    for token in (TOKEN, "wrong"):
        assert await status(broker, host, [origin, f"Authorization: Bearer {token}"]) == 403
    assert await status(broker, host, ["Authorization: Bearer wrong"]) == 401


# -- too early, too late, too many -----------------------------------------------------------------------------------


async def test_before_a_process_is_warm_the_upgrade_is_refused(tmp_path: Path) -> None:
    """503 with Retry-After until the first spare is ready, then the same handshake works."""
    config = {"cli": {"env": {"SIMULATOR_FAULTS": "slow_start=1"}}, "pool": {"profiles": {"default": {"warm": 1}}}}
    async with running_broker(tmp_path, config, wait_ready=False) as early:
        host = f"127.0.0.1:{early.port}"
        async with tcp(early.port) as stream:
            reply = await upgrade(stream, host, [])
            assert (reply.status, reply.headers["Retry-After"]) == (503, "1")
        assert early.get("/livez")[0] == 200
        assert early.get("/readyz")[0] == 503
        await early.wait_pool(warm=1)
        assert await status(early, host, []) == 101


async def test_a_draining_broker_refuses_the_upgrade(tmp_path: Path) -> None:
    """A handshake that ends during the drain is 503 with Retry-After, while the running turn goes on to its end."""
    async with running_broker(tmp_path) as ending:
        async with connected(ending.url, hello={}) as client, tcp(ending.port) as stream:
            await client.say("[[sim tokens=100 itl_ms=10]] last words", "m-1")
            await client.until_type("stream_event")
            ending.popen.send_signal(signal.SIGTERM)
            await client.until_type("broker.go_away")
            reply = await upgrade(stream, f"127.0.0.1:{ending.port}", [])
            assert (reply.status, reply.headers["Retry-After"]) == (503, "5")
            assert (await client.terminal("m-1"))["type"] == "broker.turn_completed"
            assert await client.closed() == 1012
        assert await ending.stop() == 0


async def test_too_many_silent_sockets_are_refused(narrow: Broker) -> None:
    """429 with Retry-After above the number per address, then above the number in all; there is room again later."""
    host = f"127.0.0.1:{narrow.port}"
    async with AsyncExitStack() as stack:

        async def another(source: str) -> Reply:
            return await upgrade(await stack.enter_async_context(tcp(narrow.port, source)), host, [])

        assert [(await another("127.0.0.1")).status for _ in range(PER_ADDRESS)] == [101] * PER_ADDRESS
        refused = await another("127.0.0.1")
        assert (refused.status, refused.headers["Retry-After"]) == (429, "1")
        rest = IN_ALL - PER_ADDRESS
        assert [(await another("127.0.0.2")).status for _ in range(rest)] == [101] * rest
        assert (await another("127.0.0.3")).status == 429
    await eventually(lambda: narrow.metric("broker_connections") == 0)
    assert await status(narrow, host, []) == 101


async def test_who_says_nothing_is_closed(narrow: Broker) -> None:
    """No hello within its time is 4007, one after the other, and the places are free again."""
    await eventually(lambda: narrow.metric("broker_connections") == 0)
    for _ in range(2):
        async with AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(connected(narrow.url)) for _ in range(PER_ADDRESS)]
            assert [await client.closed(HELLO_TIMEOUT_S + 2) for client in clients] == [4007] * PER_ADDRESS
        await eventually(lambda: narrow.metric("broker_connections") == 0)


@pytest.mark.parametrize(("known", "size", "code"), [(False, 65536, 4501), (False, 65537, 1009), (True, 65537, 0)])
async def test_a_stranger_may_send_64_kib(broker: Broker, known: bool, size: int, code: int) -> None:
    """Before anybody has said who it is, 1009 above 64 KiB; who came with a token may send a longer hello."""
    headers = {"Authorization": f"Bearer {TOKEN}"} if known else {}
    hello = {"type": "broker.hello", "options": {"system_prompt": ""}}
    hello["options"] = {"system_prompt": "a" * (size - len(json.dumps(hello)))}
    async with connected(broker.url, headers=headers) as client:
        await client.send(hello)
        if code:
            assert await client.closed() == code
        else:
            await client.until_type("broker.welcome")


@pytest.mark.parametrize(
    ("first", "code"),
    [
        ({"type": "broker.ping"}, 4502),
        ({"type": "broker.hello", "protocol": 2}, 4510),
        ({"type": "broker.hello"}, 4501),
    ],
)
async def test_a_refused_hello_has_its_code(narrow: Broker, first: dict[str, object], code: int) -> None:
    """Another first frame, another protocol and no token are told apart by the close code."""
    async with connected(narrow.url) as client:
        await client.socket.send(json.dumps(first))
        with pytest.raises(ConnectionClosed) as caught:
            await client.receive()
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == code
