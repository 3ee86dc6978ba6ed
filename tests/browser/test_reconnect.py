"""The page and a connection that breaks: nothing twice, nothing missing, and never a silent gap."""

import json
from typing import Any

import pytest
from playwright.async_api import expect

from tests.browser.stage import Chat, Stage, Staging
from tests.kit.client import connected
from tests.kit.ledger import said_to_cli, user_ids
from tests.kit.proxy import At
from tests.waiting import eventually

pytestmark = pytest.mark.browser


def words_of_cli(stage: Stage) -> str:
    """The text of every delta that a CLI wrote, by its own record."""
    events = [json.loads(row["line"]) for row in stage.broker.ledger_rows("out") if "line" in row]
    deltas = (event["event"].get("delta", {}) for event in events if event["type"] == "stream_event")
    return "".join(delta["text"] for delta in deltas if delta.get("type") == "text_delta")


async def stored(chat: Chat, name: str) -> Any:
    """What the page keeps in its session storage."""
    return await chat.page.evaluate("name => JSON.parse(sessionStorage.getItem(`broker.${name}`))", name)


async def test_two_cuts_within_one_reply_change_nothing(staged: Staging) -> None:
    """The socket is cut twice in mid-reply; in the end the page shows exactly what the CLI wrote, once."""
    async with staged() as stage, stage.chat(proxied=True) as chat:
        await chat.say("Cut [[sim tokens=500 itl_ms=10]]")
        for count in (20, 60):
            await chat.wait_words(count)
            before = stage.proxy.accepted
            stage.proxy.cut_all()
            await eventually(lambda before=before: stage.proxy.accepted > before)  # type: ignore[misc]
            await chat.wait_connected()
            assert await chat.turn().get_attribute("data-state") == "running"
        await chat.wait_turn("done", 0)
        expected = "".join(f"cut{n} " for n in range(500))
        assert words_of_cli(stage) == expected
        assert await chat.words() == expected
        await expect(chat.page.locator(".turn")).to_have_count(1)
        await expect(chat.page.locator(".notice")).to_have_count(0)


async def test_cuts_at_many_bytes_change_nothing(staged: Staging) -> None:
    """Connections that end after a few thousand bytes, inside a frame or a replay, again and again, do not disturb a
    reply.  The page is told all the time that it is online again: it then comes back without a pause."""
    async with staged() as stage, stage.chat(proxied=True) as chat:
        await chat.page.evaluate("setInterval(() => dispatchEvent(new Event('online')), 20)")
        await chat.say("Cut [[sim tokens=400 itl_ms=10]]")
        sizes = (1500, 2100, 1701, 3333, 4097, 2718, 2222, 1999, 5003, 2501)
        for count, size in zip(range(10, 210, 20), sizes, strict=True):
            await chat.wait_words(count)
            cuts = stage.proxy.cuts
            stage.proxy.cut_after(size)
            stage.proxy.cut_all()
            await eventually(lambda cuts=cuts: stage.proxy.cuts > cuts)  # type: ignore[misc]
            assert await chat.turn().get_attribute("data-state") == "running"
        await chat.wait_turn("done", 0)
        assert await chat.words() == words_of_cli(stage) == "".join(f"cut{n} " for n in range(400))
        await expect(chat.page.locator(".notice")).to_have_count(0)


async def test_a_message_whose_receipt_is_lost_is_sent_again_and_runs_once(staged: Staging) -> None:
    """The connection dies inside ``broker.accepted``: the page sends the same id again, and the CLI gets it once."""
    async with staged() as stage, stage.chat(proxied=True) as chat:
        cuts = stage.proxy.cuts
        stage.proxy.arm(At(frame=1))  # frame 0 is the welcome
        before = stage.proxy.accepted
        stage.proxy.cut_all()
        await eventually(lambda: stage.proxy.accepted > before)
        await chat.wait_connected()
        await chat.say("Once [[sim tokens=5]]")
        await eventually(lambda: stage.proxy.cuts > cuts)
        await chat.wait_turn("done", 0)
        assert await chat.words() == "".join(f"once{n} " for n in range(5))
        assert len(user_ids(stage.broker.ledger_rows())) == 1
        await eventually(lambda: len(stage.broker.log_events("connection.attached")) >= 3)
        assert await stored(chat, "outbox") == []


async def test_a_message_typed_while_disconnected_is_sent_later(staged: Staging) -> None:
    """Without a connection the page says so, keeps the message, and sends it when the connection is back."""
    async with staged() as stage, stage.chat(proxied=True) as chat:
        stage.proxy.shut()
        await expect(chat.page.locator("#banner")).to_contain_text("Next attempt in")
        await chat.say("Later [[sim tokens=2]]")
        await expect(chat.turn()).to_contain_text("Will be sent when the connection is back")
        assert [message["text"] for message in await stored(chat, "outbox")] == ["Later [[sim tokens=2]]"]
        stage.proxy.is_shut = False
        await chat.page.get_by_role("button", name="Try now").dispatch_event("click")
        await chat.wait_turn("done", 0)
        assert await chat.words() == "later0 later1 "
        await expect(chat.page.locator("#banner")).to_be_hidden()


async def test_a_stop_while_disconnected_arrives_later(staged: Staging) -> None:
    """What the user wanted stopped when the connection was gone is stopped, once, when it is back."""
    async with staged() as stage, stage.chat(proxied=True) as chat:
        await chat.say("Long [[sim tokens=5000 itl_ms=10]]")
        await chat.wait_words(5)
        stage.proxy.shut()
        await expect(chat.page.locator('#status[data-state="retrying"]')).to_be_visible()
        await chat.page.press("#message", "Escape")
        stage.proxy.is_shut = False
        turn = await chat.wait_turn("done", 0)
        await expect(turn.locator(".meta")).to_contain_text("stopped")
        interrupts = said_to_cli(stage.broker.ledger_rows(), "control_request")
        assert [m["request"]["subtype"] for _, m in interrupts].count("interrupt") == 1


async def test_lost_output_is_told(staged: Staging) -> None:
    """When the broker kept less than was missed, the page says which part is missing, and goes on from there."""
    async with staged({"replay": {"frames": 20}}) as stage, stage.chat(proxied=True) as chat:
        await chat.say("Gap [[sim tokens=150 itl_ms=10]]")
        await chat.wait_words(5)
        stage.proxy.shut()
        await eventually(lambda: "gap120 " in words_of_cli(stage), 20)
        stage.proxy.is_shut = False
        turn = await chat.wait_turn("done", 0)
        await expect(turn.locator(".notice")).to_contain_text("Part of the output is missing here (frames")
        await expect(turn.locator(".notice")).to_contain_text("longer than the broker keeps")
        assert (await chat.words()).endswith("gap149 ")


async def test_a_reload_shows_the_conversation_again(staged: Staging) -> None:
    """The tab finds its conversation after a reload, with everything that the broker kept, also in mid-turn."""
    async with staged() as stage, stage.chat() as chat:
        await chat.say("One [[sim tokens=3]]")
        await chat.wait_turn("done", 0)
        await chat.say("Two [[sim tokens=100 itl_ms=10]]")
        await chat.wait_words(10)
        await chat.page.reload()
        await chat.wait_turn("done", 1)
        assert await chat.words(0) == "one0 one1 one2 "
        assert await chat.words(1) == "".join(f"two{n} " for n in range(100))
        await expect(chat.turn(0).locator(".question")).to_have_text("One [[sim tokens=3]]")
        assert await chat.turn(0).locator(".start").text_content() == "warm"


async def test_a_conversation_that_is_gone_is_told(staged: Staging) -> None:
    """After the broker forgot a conversation a reload begins a new one and says so; nothing is sent twice."""
    async with staged() as stage, stage.chat() as chat:
        await chat.page.evaluate("""() => sessionStorage.setItem(
            'broker.conversation', JSON.stringify({id: 'gone-1', isKnown: true, model: null}))""")
        await chat.page.evaluate("""() => sessionStorage.setItem(
            'broker.outbox', JSON.stringify([{id: 'm-1', text: 'unsent words'}]))""")
        await chat.page.reload()
        await expect(chat.page.locator(".notice")).to_contain_text("no longer available")
        await chat.wait_connected()
        await expect(chat.page.locator("#message")).to_have_value("unsent words")
        assert user_ids(stage.broker.ledger_rows()) == []


async def test_a_duplicated_tab_takes_over_and_gives_back(staged: Staging) -> None:
    """Two tabs of one instance do not fight: the older one is told and can join again under a name of its own."""
    async with staged() as stage, stage.chat() as chat:
        conversation, instance = await stored(chat, "conversation"), await stored(chat, "instance")
        hello = {"session": {"mode": "resume", "id": conversation["id"]}, "client": {"instance": instance}}
        async with connected(stage.broker.url, hello=hello):
            await expect(chat.page.locator("#banner")).to_contain_text("opened in another tab")
            await expect(chat.page.locator('#status[data-state="final"]')).to_be_visible()
            await chat.page.get_by_role("button", name="Use it here").click()
            await chat.wait_connected()
            assert await stored(chat, "instance") != instance
            await chat.say("Both [[sim tokens=2]]")
            await chat.wait_turn("done", 0)


async def test_a_broker_that_stops_is_waited_for(staged: Staging) -> None:
    """A planned end is announced; the page keeps what it shows and tries again, with pauses that are jittered."""
    async with staged() as stage, stage.chat() as chat:
        await chat.say("Bye [[sim tokens=2]]")
        await chat.wait_turn("done", 0)
        assert await stage.broker.stop() == 0
        await expect(chat.page.locator("#banner")).to_contain_text("Next attempt in")
        assert await chat.words() == "bye0 bye1 "


async def test_the_back_off_is_full_jitter_between_half_a_second_and_twenty(staged: Staging) -> None:
    """Every attempt waits anything from nothing to a bound that doubles from 500 ms and ends at 20 s."""
    async with staged() as stage, stage.chat() as chat:
        script = """async () => {
            const { backoffMs } = await import('/connection.js');
            return [0, 1, 2, 5, 6, 50].map(attempt => [backoffMs(attempt, () => 0), backoffMs(attempt, () => 1)]);
        }"""
        bounds = [500, 1_000, 2_000, 16_000, 20_000, 20_000]
        assert await chat.page.evaluate(script) == [[0, bound] for bound in bounds]
