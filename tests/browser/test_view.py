"""The page's reducer and its renderer without the page around them: pure modules, run where they belong."""

from pathlib import Path
from typing import Any

import pytest

from tests.browser.stage import Chat, Staging
from tests.kit.client import Frame, connected

pytestmark = pytest.mark.browser

HERE = Path(__file__).parent
SCENES = (
    "One [[sim thinking tokens=6]]",
    'Two [[sim tool="Bash:touch made.txt" tokens=4]]',
    "Three [[sim error=529]]",
    "Four [[sim die_after=3]]",
    "Five [[sim tokens=3]]",
)


def script(name: str) -> str:
    """The function in a file beside this one; a comment before it is none of Playwright's business."""
    text = (HERE / name).read_text()
    return text[text.index("async (") :].rstrip().removesuffix(";")


async def recorded(url: str) -> tuple[Frame, list[Frame]]:
    """A real conversation with every kind of turn: its welcome and its numbered frames."""
    async with connected(url, hello={"session": {"mode": "new"}}) as client:
        for number, scene in enumerate(SCENES):
            await client.say(scene, f"m-{number}")
            if "tool=" in scene:
                await client.say("queued meanwhile", "m-queued")
                asked = await client.prompt()
                await client.answer(asked["request_id"], behavior="allow")
            await client.terminal(f"m-{number}")
        await client.ask("set_model", "c-1", model="opus")
        await client.until_type("broker.state")
        await client.sync()
        return client.welcome, client.numbered()


async def reduced(chat: Chat, frames: list[Frame]) -> dict[str, Any]:
    """The view after these frames, as far as JSON can tell it."""
    code = """async frames => {
        const { apply, newView } = await import('/view.js');
        const view = newView();
        for (const frame of frames) apply(view, frame);
        return JSON.parse(JSON.stringify({...view, current: view.current?.id ?? null}));
    }"""
    view: dict[str, Any] = await chat.page.evaluate(code, frames)
    return view


def hello(**fields: Any) -> Frame:
    """A welcome with nothing in it."""
    empty = {"type": "broker.welcome", "epoch": "e1", "head_seq": 0, "replay": None, "lost": None, "start": "warm"}
    return {**empty, "ready_ms": 1.0, "turn": None, "queued": [], "pending": [], "session_id": "s", **fields}


def delta(seq: int, text: str, index: int = 0) -> Frame:
    """One text delta."""
    event = {"type": "content_block_delta", "index": index, "delta": {"type": "text_delta", "text": text}}
    return {"type": "stream_event", "event": event, "parent_tool_use_id": None, "api_message_id": "msg_1", "seq": seq}


def started(seq: int, message_id: str = "m-1") -> Frame:
    """A message begins to run."""
    return {"type": "broker.message", "id": message_id, "state": "started", "by": "x", "content": "Hi", "seq": seq}


async def test_any_delivery_gives_the_same_view(staged: Staging) -> None:
    """However often a connection breaks, and whatever is delivered twice, the view in the end is the same."""
    async with staged() as stage, stage.chat() as chat:
        welcome, frames = await recorded(stage.broker.url)
        assert [frame["seq"] for frame in frames] == list(range(1, len(frames) + 1))
        given = {"frames": frames, "welcome": welcome, "rounds": 400, "cuts": 4, "seed": 7}
        found = await chat.page.evaluate(script("deliveries.js"), given)
        assert found["turns"] >= len(SCENES) + 1
        assert found["count"] == 0, found["wrong"]


async def test_a_text_that_grows_looks_like_one_painted_at_once(staged: Staging) -> None:
    """The incremental renderer and the whole one make the same elements, lose no word and parse no HTML."""
    async with staged() as stage, stage.chat() as chat:
        assert await chat.page.evaluate(script("growth.js"), {"rounds": 1500, "seed": 11}) == []


async def test_a_gap_is_told_and_healed_by_the_whole_message(staged: Staging) -> None:
    """What is missing is marked where it is missing; the complete message behind the deltas then gives the words."""
    lost = {"from": 3, "to": 8, "reason": "too_far_behind"}
    whole = {"id": "msg_1", "content": [{"type": "text", "text": "All of it"}]}
    frames = [
        hello(),
        started(1),
        delta(2, "All"),
        hello(head_seq=9, lost=lost, replay={"from": 9, "to": 9}, turn={"id": "m-1", "first_seq": 1}),
        delta(9, " it"),
        {"type": "assistant", "message": whole, "parent_tool_use_id": None, "seq": 10},
    ]
    async with staged() as stage, stage.chat() as chat:
        turn = (await reduced(chat, frames))["items"][0]
        assert [(block["type"], block["text"] if "text" in block else block["range"]) for block in turn["blocks"]] == [
            ("text", "All of it"),
            ("lost", "3 to 8"),
        ]
        assert turn["state"] == "running"


async def test_an_unannounced_gap_is_told_too(staged: Staging) -> None:
    """A seq that jumps without a word from the broker is a gap all the same."""
    async with staged() as stage, stage.chat() as chat:
        view = await reduced(chat, [hello(), started(1), delta(5, "late")])
        assert [block["type"] for block in view["items"][0]["blocks"]] == ["lost", "text"]


async def test_a_turn_whose_end_was_lost_is_not_called_done(staged: Staging) -> None:
    """After a new epoch a turn that ran before is neither running nor done: nobody knows."""
    lost = {"from": 3, "to": None, "reason": "epoch_changed"}
    frames = [hello(), started(1), delta(2, "Hi"), hello(epoch="e2", lost=lost)]
    async with staged() as stage, stage.chat() as chat:
        view = await reduced(chat, frames)
        assert view["items"][0]["state"] == "unknown"
        assert (view["current"], view["epoch"], view["lastSeq"]) == (None, "e2", 0)


async def test_a_turn_that_began_before_the_log_is_shown(staged: Staging) -> None:
    """A page that comes late sees what is kept of the running turn, and that something is missing before it."""
    welcome = hello(head_seq=9, replay={"from": 5, "to": 9}, turn={"id": "m-7", "first_seq": 2}, start="attached")
    async with staged() as stage, stage.chat() as chat:
        view = await reduced(chat, [welcome, *(delta(seq, "x") for seq in range(5, 10))])
        assert [item["kind"] for item in view["items"]] == ["notice", "turn"]
        assert view["current"] == "m-7"
        assert view["items"][1]["blocks"][0]["text"] == "xxxxx"


async def test_unknown_frames_change_nothing(staged: Staging) -> None:
    """Types that the page does not know, and names that every object has, are no events."""
    names = ("constructor", "__proto__", "broker.new", "x")
    strange = [{"type": name, "seq": seq} for seq, name in enumerate(names, 1)]
    async with staged() as stage, stage.chat() as chat:
        view = await reduced(chat, [hello(), *strange])
        assert view["items"] == []
        assert view["lastSeq"] == len(strange)
