"""Bad input: the catalogue of frames, and bytes that are no frames at all, each beside a neighbour that streams on."""

import asyncio
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.server_bytes import BINARY, CLOSE, PING, TEXT
from tests.e2e.beside import neighbour, no_bug, rss_mb, welcomed
from tests.kit.broker import Broker, started_broker
from tests.kit.client import connected
from tests.kit.raw import Cut, RawClient, client_frame, raw_connection
from tests.oracle import Oracle

CATALOGUE: dict[str, list[dict[str, Any]]] = tomllib.loads(
    (Path(__file__).resolve().parents[1] / "data" / "bad_frames.toml").read_text()
)
OPEN_TIMEOUT_S = 1.0
MARK = 771177


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory, oracle: Oracle) -> Iterator[Broker]:
    """A broker with short deadlines for those who say nothing."""
    config = {
        "server": {"hello_timeout_s": OPEN_TIMEOUT_S},
        "policy": {"base_urls": ["https://llm.test/v1"]},
        "session": {"detach_timeout_s": 30},
        "pool": {"profiles": {"default": {"warm": 2}}},
    }
    with started_broker(tmp_path_factory.mktemp("bad"), config) as found:
        oracle.allow(pid=found.pid)
        yield found


# -- the catalogue ---------------------------------------------------------------------------------------------------


def payload(entry: dict[str, Any], prompt: str) -> bytes:
    """What an entry sends: a whole WebSocket frame."""
    if "binary" in entry:
        return client_frame(entry["binary"].encode(), BINARY)
    if "hex" in entry:
        return client_frame(bytes.fromhex(entry["hex"]))
    text = entry["text"] if "text" in entry else entry["head"] + entry["unit"] * entry["times"] + entry["tail"]
    return client_frame(text.replace("$PROMPT", prompt).encode())


async def answer(raw: RawClient, entry: dict[str, Any], prompt: str) -> tuple[int | None, list[dict[str, Any]]]:
    """The close code, None when the connection stays; and the errors that were told."""
    errors: list[dict[str, Any]] = []
    try:
        for text in entry.get("before", []):
            await raw.send(text.encode())
        for _ in range(entry.get("again", 1)):
            await raw.send_raw(payload(entry, prompt))
        if "close" not in entry:
            await raw.send({"type": "broker.ping", "t": MARK})
        while (frame := await raw.frame(5))["type"] != "broker.pong" or frame["t"] != MARK:
            if frame["type"] == "broker.error":
                errors.append(frame)
            elif frame["type"] == "broker.welcome" and "close" in entry:
                return None, errors
    except Cut as cut:
        return cut.code, errors
    return None, errors


def mistakes(entry: dict[str, Any], close: int | None, errors: list[dict[str, Any]]) -> Iterator[str]:
    """In what an answer differs from the catalogue's."""
    expected = [entry["error"]] * entry.get("again", 1) if "error" in entry else []
    if [error["code"] for error in errors] != expected:
        yield f"errors {errors}"
    if close != entry.get("close"):
        yield f"close {close}"
    if any(entry.get("says", "") not in error["message"] for error in errors):
        yield f"says {errors[0]['message']!r}"


async def played(broker: Broker, entries: list[dict[str, Any]], session: str | None, prompt: str = "") -> list[str]:
    """Play ``entries``, each on a connection of its own; one line per mistake.  ``session``: what it opens first."""
    wrong = []
    for entry in entries:
        before = broker.metric("broker_unknown_fields_total") if "dropped" in entry else 0
        async with raw_connection(broker.port) as raw:
            if session is not None:
                await welcomed(raw, session)
            try:
                found = list(mistakes(entry, *await answer(raw, entry, prompt)))
            except TimeoutError:
                found = ["no answer"]
        if "dropped" in entry and broker.metric("broker_unknown_fields_total") - before != entry["dropped"]:
            found.append("dropped fields")
        wrong += [f"{entry['name']}: {line}" for line in found]
    return wrong


def test_the_catalogue_is_large_and_every_name_is_its_own() -> None:
    """At least 60 frames, each told from the others by its name."""
    names = [f"{phase}/{entry['name']}" for phase, entries in CATALOGUE.items() for entry in entries]
    assert len(names) == len(set(names)) >= 60


async def test_every_first_frame_gets_its_answer(broker: Broker) -> None:
    """A first frame of the catalogue ends its connection with its own code; nobody else notices."""
    async with neighbour(broker), connected(broker.url, hello={"session": {"mode": "open", "id": "shared"}}):
        assert await played(broker, CATALOGUE["hello"], None) == []
    assert no_bug(broker)


async def test_every_later_frame_gets_its_answer(broker: Broker) -> None:
    """A frame after welcome gets its error, and the connection stays or closes as the catalogue says."""
    async with neighbour(broker):
        assert await played(broker, CATALOGUE["session"], "shared") == []
    assert no_bug(broker)


async def test_a_bad_answer_leaves_the_prompt_open(broker: Broker) -> None:
    """A wrong answer to a permission prompt is told and settles nothing: the right one is taken afterwards."""
    async with neighbour(broker), connected(broker.url, hello={"session": {"mode": "open", "id": "asks"}}) as client:
        await client.say('[[sim tool="Bash:touch asked"]] please', "m-1")
        prompt = (await client.prompt())["request_id"]
        assert await played(broker, CATALOGUE["prompt"], "asks", prompt) == []
        await client.answer(prompt, behavior="allow")
        assert (await client.terminal("m-1"))["is_error"] is False
        await client.answer(prompt, behavior="deny")
        assert (await client.error())["code"] == "already_answered"
    assert no_bug(broker)


# -- bytes that are no frames ----------------------------------------------------------------------------------------

BROKEN = {
    "unmasked": (client_frame(b"{}", masked=False), 1002),
    "reserved-bit": (b"\xf1\x80" + bytes(4), 1002),
    "compressed-without-asking": (b"\xc1\x80" + bytes(4), 1002),
    "reserved-opcode": (client_frame(b"", 0x3), 1002),
    "reserved-control": (client_frame(b"", 0xB), 1002),
    "long-ping": (client_frame(bytes(126), PING), 1002),
    "fragmented-ping": (client_frame(b"", PING, final=False), 1002),
    "continuation-of-nothing": (client_frame(b"a", 0x0), 1002),
    "text-inside-a-message": (client_frame(b"a", TEXT, final=False) + client_frame(b"b", TEXT), 1002),
    "length-of-8-exbibytes": (b"\x81\xff" + b"\x7f" + b"\xff" * 7 + bytes(4), 1009),
    "length-with-its-top-bit": (b"\x81\xff" + b"\xff" * 8 + bytes(4), 1009),
    "close-of-one-byte": (client_frame(b"\x03", CLOSE), 1002),
    "close-with-999": (client_frame((999).to_bytes(2, "big"), CLOSE), 1002),
    "close-with-bad-utf8": (client_frame(b"\x03\xe8\xff", CLOSE), 1007),
    "bad-utf8-across-fragments": (
        client_frame(b"\xe2\x82", TEXT, final=False) + client_frame(b"\x28", 0x0), 1007,
    ),
}  # fmt: skip


async def close_of(raw: RawClient, within_s: float = 5) -> int | None:
    """The close code; the broker has then ended the TCP connection too."""
    try:
        async with asyncio.timeout(within_s):
            while True:
                await raw.receive(within_s)
    except Cut as cut:
        return cut.code


async def test_broken_frames_end_their_connection_alone(broker: Broker) -> None:
    """What RFC 6455 forbids is answered with its close code, before hello and after, and the socket is gone."""
    async with neighbour(broker):
        for session in (None, "raw"):
            found, expected = {}, {}
            for name, (data, code) in BROKEN.items():
                expected[name] = code
                async with raw_connection(broker.port) as raw:
                    if session:
                        await welcomed(raw, session)
                    await raw.send_raw(data)
                    found[name] = await close_of(raw)
            assert found == expected
    assert no_bug(broker)


async def pour(raw: RawClient, chunk: bytes, total: int) -> int | None:
    """Send ``chunk`` again and again, ``total`` bytes at most, while reading nothing; then the close code."""
    try:
        for _ in range(total // len(chunk)):
            await raw.send_raw(chunk)
    except Cut:
        pass
    return await close_of(raw)


FLOODS = {
    "empty-fragments": (client_frame(b"", TEXT, final=False), client_frame(b"", 0x0, final=False) * 10000),
    "fragments-of-a-byte": (client_frame(b"a", TEXT, final=False), client_frame(b"a", 0x0, final=False) * 10000),
    "fragments-of-64-kib": (client_frame(b"a", TEXT, final=False), client_frame(bytes(65536), 0x0, final=False)),
}


@pytest.mark.parametrize("session", [None, "raw"], ids=["before-hello", "after-hello"])
async def test_an_endless_message_is_cut(broker: Broker, session: str | None) -> None:
    """A message that never ends is cut, however small its fragments; the broker's memory stays bounded."""
    async with neighbour(broker):
        before = rss_mb(broker)
        for name, (start, more) in FLOODS.items():
            async with raw_connection(broker.port) as raw:
                if session:
                    await welcomed(raw, session)
                await raw.send_raw(start)
                assert await pour(raw, more, 64 * 2**20) in (1009, None), name
        assert rss_mb(broker) - before < 40
    assert no_bug(broker)
