"""Requests that try the handshake: crowds that never finish theirs, and bytes that only look like a request."""

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack

import pytest

from bench.server_bytes import PING, PONG, TEXT
from tests.e2e.beside import neighbour, no_bug, rss_mb, welcomed
from tests.kit.broker import Broker, started_broker
from tests.kit.client import connected
from tests.kit.pulse import Pulse
from tests.kit.raw import Cut, client_frame, raw_connection
from tests.oracle import Oracle
from tests.soak import LONG_S, size
from tests.waiting import eventually

OPEN_TIMEOUT_S = 1.0
SLOW = size(500, 5000)
HALVES = [b"", b"G", b"GET /v1/chat/ws HTTP/1.1\r\n", b"GET /v1/chat/ws HTTP/1.1\r\nHost: 127.0.0.1", b"\x16\x03\x01",
          b"GET /v1/chat/ws HTTP/1.1\r\nX: " + b"a" * 4000]  # fmt: skip
LOG_LINES = 20
"""That a crowd may leave, whatever its size; the good handshakes' own not counted."""


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory, oracle: Oracle) -> Iterator[Broker]:
    """A broker that gives a request a second."""
    config = {
        "server": {"hello_timeout_s": OPEN_TIMEOUT_S},
        "session": {"detach_timeout_s": 30},
        "pool": {"profiles": {"default": {"warm": 2}}},
    }
    with started_broker(tmp_path_factory.mktemp("handshakes"), config) as found:
        oracle.allow(pid=found.pid)
        yield found


def has_ended(sock: socket.socket) -> bool:
    """Whether the broker has closed; a byte now and then buys no time."""
    try:
        if sock.recv(65536) == b"":
            return True
    except BlockingIOError:
        pass
    except OSError:
        return True
    try:
        sock.send(b"a")
    except BlockingIOError:
        pass
    except OSError:
        return True
    return False


@pytest.mark.timeout(LONG_S)
async def test_a_crowd_of_half_requests_is_gone_in_time(broker: Broker) -> None:
    """Hundreds of sockets that never finish are closed within the timeout and a second; handshakes meanwhile are
    quick, the log tells of it in a few lines, and no memory stays."""
    loop, lines, before = asyncio.get_running_loop(), broker.log_text().count("\n"), rss_mb(broker)
    with_hello = {"session": {"mode": "open", "id": "good"}}
    good: list[float] = []
    async with AsyncExitStack() as stack, connected(broker.url, hello=with_hello) as client:
        began, halves = time.monotonic(), []
        for number in range(SLOW):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            await loop.sock_connect(sock, ("127.0.0.1", broker.port))
            await loop.sock_sendall(sock, HALVES[number % len(HALVES)])
            halves.append(sock)
        last = time.monotonic()

        async def handshakes() -> None:
            while halves:
                asked = time.monotonic()
                async with connected(broker.url, hello={**with_hello, "role": "observer"}):
                    good.append(time.monotonic() - asked)

        def all_gone() -> bool:
            halves[:] = [sock for sock in halves if not has_ended(sock)]
            return not halves

        async with asyncio.TaskGroup() as group:
            group.create_task(handshakes())
            await eventually(all_gone, OPEN_TIMEOUT_S + 20)
        gone = time.monotonic() - last
        pulse = Pulse(client)
        pulse.times = good
        print(
            f"{SLOW} half requests in {last - began:.1f} s: gone {gone:.2f} s after the last; handshakes {pulse.told()}"
        )
    assert gone < OPEN_TIMEOUT_S + 5  # the figure is printed
    own = sum(len(broker.log_events(f"connection.{what}")) for what in ("attached", "closed"))
    assert broker.log_text().count("\n") - lines - own < LOG_LINES
    assert rss_mb(broker) - before < 0.02 * SLOW + 20
    assert no_bug(broker)


# -- a table ---------------------------------------------------------------------------------------------------------

START = b"GET /v1/chat/ws HTTP/1.1\r\n"
HOST = b"Host: $HOST\r\n"
UPGRADE = (b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
           b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n")  # fmt: skip
WHOLE = START + HOST + UPGRADE
PROTOCOLS = b"Sec-WebSocket-Protocol: " + b", ".join(b"p%d" % number for number in range(900)) + b"\r\n"
SECOND = b"GET /livez HTTP/1.1\r\n" + HOST + b"\r\n"
REQUESTS = {
    "tls": (bytes.fromhex("16030100a5010000a10303") + bytes(160), b""),
    "128-headers": (WHOLE + b"X: a\r\n" * 123 + b"\r\n", b"101"),
    "129-headers": (WHOLE + b"X: a\r\n" * 124 + b"\r\n", b"431"),
    "line-of-9-kib": (WHOLE + b"X: " + b"a" * 9216 + b"\r\n\r\n", b"431"),
    "lf-only": ((WHOLE + b"\r\n").replace(b"\r\n", b"\n"), b""),
    "cr-only": ((WHOLE + b"\r\n").replace(b"\r\n", b"\r"), b""),
    "nul-in-a-value": (WHOLE + b"X: a\x00b\r\n\r\n", b""),
    "nul-in-a-name": (WHOLE + b"X\x00: a\r\n\r\n", b""),
    "nul-in-the-path": (b"GET /v1/chat/ws\x00 HTTP/1.1\r\n" + HOST + UPGRADE + b"\r\n", b"404"),
    "folded-header": (WHOLE + b"X: a\r\n b\r\n\r\n", b""),
    "blank-line-first": (b"\r\n" + WHOLE + b"\r\n", b""),
    "absolute-target": (b"GET http://evil.test/v1/chat/ws HTTP/1.1\r\n" + HOST + UPGRADE + b"\r\n", b"404"),
    "subprotocol-not-ascii": (WHOLE + b"Sec-WebSocket-Protocol: br\xc3\xb6ker.v1\r\n\r\n", b"400"),
    "subprotocol-not-utf8": (WHOLE + b"Sec-WebSocket-Protocol: broker.v1, \xff\r\n\r\n", b"400"),
    "10000-subprotocols": (WHOLE + PROTOCOLS * 11 + b"\r\n", b"101"),
    "10000-subprotocols-in-a-line": (WHOLE + PROTOCOLS[:-2] + (b", " + PROTOCOLS[24:-2]) * 10 + b"\r\n\r\n", b"431"),
    "no-host": (START + UPGRADE + b"\r\n", b"403"),
    "two-hosts": (START + HOST + HOST + UPGRADE + b"\r\n", b"403"),
    "http-1.0": (WHOLE.replace(b"1.1", b"1.0", 1) + b"\r\n", b"505"),
    "short-key": (WHOLE.replace(b"AAAAAAAAAAAAAAAAAAAAAA==", b"AAAA") + b"\r\n", b"400"),
    "two-keys": (WHOLE + UPGRADE[UPGRADE.index(b"Sec-WebSocket-Key") :] + b"\r\n", b"400"),
    "another-upgrade": (WHOLE.replace(b"websocket", b"h2c", 1) + b"\r\n", b"426"),
    "path-of-9-kib": (b"GET /" + b"a" * 9216 + b" HTTP/1.1\r\n" + HOST + UPGRADE + b"\r\n", b"414"),
    "http-2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b""),
    "post": (WHOLE.replace(b"GET", b"POST", 1) + b"\r\n", b"405"),
    "body": (WHOLE + b"Content-Length: 5\r\n\r\n", b""),
    "chunked": (WHOLE + b"Transfer-Encoding: chunked\r\n\r\n", b""),
    "no-upgrade": (START + HOST + b"\r\n", b"426"),
    "no-key": (WHOLE[: WHOLE.index(b"Sec-WebSocket-Key")] + b"\r\n", b"400"),
    "version-12": (WHOLE.replace(b"13", b"12", 1) + b"\r\n", b"400"),
    "space-in-a-name": (WHOLE + b"X : a\r\n\r\n", b""),
    "not-http": (b"\x16\x03\x01\x02\x00\r\n\r\n", b""),
    "second-request": (SECOND + SECOND, b"200"),
    "second-request-behind-404": (SECOND.replace(b"livez", b"nothing") + SECOND, b"404"),
    "second-request-as-a-body": (SECOND[:-2] + b"Content-Length: 0\r\n\r\n" + SECOND, b"200"),
    "two-lengths": (WHOLE + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n" + SECOND, b""),
    "second-request-behind-an-upgrade": (WHOLE + b"\r\n" + SECOND, b"101"),
}


async def answered(broker: Broker, request: bytes, until: bytes | None = None) -> bytes:
    """Everything that comes back until the end of the connection, or until those bytes came."""
    reader, writer = await asyncio.open_connection("127.0.0.1", broker.port)
    try:
        writer.write(request.replace(b"$HOST", b"127.0.0.1:%d" % broker.port))
        async with asyncio.timeout(OPEN_TIMEOUT_S + 4):
            found = b""
            while (until is None or until not in found) and (data := await reader.read(65536)):
                found += data
            return found
    finally:
        writer.transport.abort()


async def test_each_request_gets_its_status_and_no_second_answer(broker: Broker) -> None:
    """One status each, or nothing where it is no HTTP; what stands behind a request is not answered, and is no bug."""
    async with neighbour(broker), asyncio.TaskGroup() as group:
        tasks = {name: group.create_task(answered(broker, request)) for name, (request, _) in REQUESTS.items()}
    answers = {name: task.result() for name, task in tasks.items()}
    assert [name for name, answer in answers.items() if answer.count(b"HTTP/1.1 ") > 1] == []
    assert {name: answer[9:12] for name, answer in answers.items()} == {
        name: status for name, (_, status) in REQUESTS.items()
    }
    assert no_bug(broker)


async def test_frames_behind_a_request_are_heard(broker: Broker) -> None:
    """A client that does not wait for the answer before its first frames loses none of them."""
    said = client_frame(b'{"type":"broker.hello"}') + client_frame(b'{"type":"broker.ping","t":7}')
    answer = await answered(broker, WHOLE + b"\r\n" + said, b'"broker.pong"')
    assert answer.startswith(b"HTTP/1.1 101 ")
    assert answer.index(b'"broker.welcome"') < answer.index(b'"broker.pong"')


# -- fragments -------------------------------------------------------------------------------------------------------

MOST_FRAGMENTS = 4096


async def test_a_message_in_too_many_pieces_is_refused(broker: Broker) -> None:
    """4,096 fragments, with a ping behind each, are one message; one more is 1009."""
    whole = b'{"type":"broker.ping","t":5}'.ljust(MOST_FRAGMENTS)
    async with raw_connection(broker.port) as raw:
        await welcomed(raw)
        frames = [client_frame(whole[:1], TEXT, final=False)]
        frames += [client_frame(whole[n : n + 1], 0, final=n == MOST_FRAGMENTS - 1) for n in range(1, MOST_FRAGMENTS)]
        await raw.send_raw(client_frame(b"between", PING).join(frames))
        while (await raw.frame())["type"] != "broker.pong":
            pass
        await raw.send_raw(frames[0] + client_frame(b"a", 0, final=False) * MOST_FRAGMENTS)
        with pytest.raises(Cut) as cut:
            await raw.receive()
        assert cut.value.code == 1009
    assert no_bug(broker)


async def test_control_frames_between_fragments_are_answered(broker: Broker) -> None:
    """A ping inside a message has its pong at once, a pong nobody asked for is nothing, and the message is whole."""
    async with raw_connection(broker.port) as raw:
        await welcomed(raw)
        await raw.send_raw(client_frame(b'{"type":"broker.', TEXT, final=False) + client_frame(b"now", PING))
        while raw.pongs != [b"now"]:
            await raw.read_on()
        await raw.send_raw(client_frame(b"unasked", PONG) + client_frame(b'ping","t":9}', 0))
        while (frame := await raw.frame())["type"] != "broker.pong":
            pass
        assert frame["t"] == 9
    assert no_bug(broker)
