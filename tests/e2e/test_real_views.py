"""What the real CLI says and sees, in both pinned versions: both views, thinking, pictures and documents."""

import base64
import random
import zlib
from pathlib import Path
from typing import Any

import pytest

from protocol.text import TextAssembler, TurnText
from simulator.messages_api import MessagesApi
from tests.e2e.real import EITHER, options, posts, real_broker
from tests.kit.client import Frame, connected, contiguous

pytestmark = [pytest.mark.real_cli, pytest.mark.timeout(180)]


def png(width: int, height: int) -> str:
    """A picture of noise, which cannot be compressed; base64."""
    noise = random.Random(7)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\x00\x00\x00"
    rows = b"".join(b"\x00" + noise.randbytes(3 * width) for _ in range(height))
    parts = [chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(parts)).decode()


PDF = base64.b64encode(
    b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj\n"
    b"3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 72 72]>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF\n"
).decode()


def unwrapped(frame: Frame) -> Frame:
    """A frame of the view ``cli`` as the view ``messages`` shows it."""
    if frame["type"] == "stream_event" and frame["parent_tool_use_id"] is None:
        return {**frame["event"], "seq": frame["seq"]}
    return frame


@pytest.mark.parametrize("version", EITHER)
async def test_both_views_of_a_turn_with_thinking(version: str, tmp_path: Path) -> None:
    """Thinking and text stream in; the view ``messages`` has the same frames without their envelope.

    The text assembler gives the same words from both, and thinking is none of them.
    """
    hello = {"session": {"mode": "open", "id": "views"}, "options": options("t", max_thinking_tokens=4000)}
    with MessagesApi() as api:
        async with (
            real_broker(tmp_path, version, api) as broker,
            connected(broker.url, hello=hello) as first,
            connected(broker.url, hello={"session": hello["session"], "view": "messages"}) as second,
        ):
            await first.say("[[sim tokens=6 thinking]] hello", "m-1")
            for client in (first, second):
                await client.terminal("m-1", 60)
            plain, events = first.numbered(), second.numbered()
            assert [unwrapped(frame) for frame in plain] == events
            assert contiguous(events)
            deltas = [frame["delta"] for frame in events if frame["type"] == "content_block_delta"]
            kinds = [delta["type"] for delta in deltas]
            assert kinds.index("thinking_delta") < kinds.index("text_delta")
            assert any(delta.get("thinking") for delta in deltas)
            for client in (first, second):
                words = TextAssembler()
                parts = [part for text in client.texts for part in words.feed(text)]
                said = "".join(delta["text"] for delta in deltas if delta["type"] == "text_delta")
                assert parts[-1] == TurnText("m-1", said)
                assert len(parts) > 6
    assert posts(api)[-1]["thinking"]["type"] in ("enabled", "adaptive")


@pytest.mark.parametrize("version", EITHER)
async def test_pictures_and_documents_reach_the_model(version: str, tmp_path: Path) -> None:
    """The request carries both, with their bytes; other clients are told their kind and size, not the bytes.

    A picture of megabytes passes, and nobody but the model gets it: the CLI's echo is not forwarded.
    """
    large = png(800, 600)
    assert len(large) > 1_900_000
    content: list[dict[str, Any]] = [
        {"type": "text", "text": "look [[sim tokens=3]]"},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": png(8, 8)}},
        {
            "type": "document",
            "source": {"type": "base64", "media_type": "application/pdf", "data": PDF},
            "title": "one",
        },
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": large}},
    ]
    with MessagesApi() as api:
        async with real_broker(tmp_path, version, api) as broker:
            async with connected(broker.url, hello={"options": options("t")}) as client:
                await client.say(content, "m-1")
                assert (await client.terminal("m-1", 60))["is_error"] is False
                told = client.of_type("broker.message")[0]["content"]
                assert [block["type"] for block in told] == ["text", "image", "document", "image"]
                assert [block["bytes"] for block in told[1:]] == [
                    len(base64.b64decode(block["source"]["data"])) for block in content[1:]
                ]
                assert max(map(len, client.texts)) < 30_000
                assert not [frame for frame in client.frames if frame.get("isReplay")]
        blocks = [block for message in posts(api)[-1]["messages"] for block in _blocks(message)]
        sent = [block for block in blocks if block["type"] in ("image", "document")]
        assert [block["type"] for block in sent] == ["image", "document", "image"]
        assert [block["source"]["media_type"] for block in sent[:2]] == ["image/png", "application/pdf"]
        assert [block["source"]["data"] for block in sent[:2]] == [png(8, 8), PDF]
        assert len(sent[2]["source"]["data"]) > 50_000, "the CLI makes a smaller picture of it"


def _blocks(message: dict[str, Any]) -> list[dict[str, Any]]:
    content = message["content"]
    return content if isinstance(content, list) else []


@pytest.mark.parametrize("version", EITHER)
async def test_a_verbose_session_shows_the_traces(version: str, tmp_path: Path) -> None:
    """Left out without ``verbose``, there with it; the words and the end of the turn are the same."""
    config = {"policy": {"options": ["verbose"]}}
    with MessagesApi() as api:
        async with real_broker(tmp_path, version, api, config) as broker:
            found = {}
            for verbose in (False, True):
                async with connected(broker.url, hello={"options": options("t", verbose=verbose)}) as client:
                    await client.say("[[sim tokens=3 thinking]] hello", "m-1")
                    assert (await client.terminal("m-1", 60))["is_error"] is False
                    assert contiguous(client.numbered())
                    found[verbose] = {(f["type"], f.get("subtype")) for f in client.numbered()}
            assert ("system", "status") in found[True] - found[False]
            assert found[False] <= found[True]
