"""What a user sees and does: tokens that arrive one after another, stop, permission prompts, the queue."""

import asyncio
from pathlib import Path

import pytest
from playwright.async_api import expect

from tests.browser.stage import Stage, Staging
from tests.kit.client import connected
from tests.kit.ledger import said_to_cli, user_ids
from tests.waiting import eventually

pytestmark = pytest.mark.browser

RECORD_GROWTH = """() => {
    window.lengths = [];
    new MutationObserver(() => {
        const turn = document.querySelector('.turn[data-state="running"]');
        const length = turn?.querySelector('.text')?.textContent.length ?? 0;
        if (length && length !== window.lengths.at(-1)) window.lengths.push(length);
    }).observe(document.getElementById('transcript'), {subtree: true, childList: true, characterData: true});
}"""


def made_by_tools(stage: Stage, name: str) -> list[Path]:
    """The files of that name in the sessions' working directories."""
    return list(stage.broker.state.glob(f"sessions/*/work/{name}"))


async def test_tokens_appear_one_after_another(staged: Staging) -> None:
    """The reply grows in many small steps while its turn runs, and then says how it was started and timed."""
    async with staged() as stage, stage.chat() as chat:
        await chat.page.evaluate(RECORD_GROWTH)
        await chat.say("Count [[sim tokens=80 ttft_ms=50 itl_ms=10]]")
        turn = await chat.wait_turn("done", 0)
        lengths = await chat.page.evaluate("window.lengths")
        assert len(lengths) >= 15
        assert lengths == sorted(lengths)
        assert await chat.words() == "".join(f"count{n} " for n in range(80))
        assert await turn.locator(".start").text_content() == "warm"
        await expect(turn.locator(".ttft")).to_contain_text("first token")
        await expect(turn.locator(".meta")).to_contain_text("80 tokens")


async def test_thoughts_are_shown_and_folded(staged: Staging) -> None:
    """Thinking is shown apart from the reply; once it is over it folds, and unfolds again on demand."""
    async with staged() as stage, stage.chat() as chat:
        await chat.say("Hm [[sim thinking tokens=3]]")
        turn = await chat.wait_turn("done", 0)
        thoughts = turn.locator(".thinking > div")
        await expect(thoughts).to_be_hidden()
        await turn.locator(".thinking summary").click()
        await expect(thoughts).to_have_text("Let me think about this for a moment.")
        assert await chat.words() == "hm0 hm1 hm2 "


async def test_stop_ends_the_turn_and_the_next_one_works(staged: Staging) -> None:
    """Stop in mid-reply keeps what was said, says that it was stopped, and the conversation goes on."""
    async with staged() as stage, stage.chat() as chat:
        await chat.say("Long [[sim tokens=5000 itl_ms=10]]")
        await chat.wait_words(10)
        await chat.page.click("#stop")
        turn = await chat.wait_turn("done", 0)
        await expect(turn.locator(".meta")).to_contain_text("stopped")
        assert (await chat.words(0)).startswith("long0 long1 long2 ")
        await expect(chat.page.locator("#stop")).to_be_hidden()
        await chat.say("Next [[sim tokens=3]]")
        await chat.wait_turn("done", 1)
        assert await chat.words(1) == "next0 next1 next2 "


async def test_a_permission_prompt_is_allowed_and_denied(staged: Staging) -> None:
    """A tool waits for the user; allowed it runs and its result is shown, denied it does not run."""
    async with staged() as stage, stage.chat() as chat:
        prompt = chat.page.locator("#prompt")
        await chat.say('Do [[sim tool="Bash:touch yes.txt && echo made" tokens=2]]')
        await prompt.wait_for()
        await expect(prompt).to_contain_text("touch yes.txt")
        await expect(chat.turn().locator(".tool .state")).to_have_text("waits for you")
        assert made_by_tools(stage, "yes.txt") == []
        await chat.page.click("#allow")
        turn = await chat.wait_turn("done", 0)
        await expect(prompt).to_be_hidden()
        assert len(made_by_tools(stage, "yes.txt")) == 1
        await expect(turn.locator(".tool .input")).to_have_text("touch yes.txt && echo made")
        await expect(turn.locator(".tool .result")).to_have_text("made")
        await expect(turn.locator(".tool .state")).to_have_text("done")

        await chat.say('Do [[sim tool="Bash:touch no.txt" tokens=2]]')
        await prompt.wait_for()
        await chat.page.click("#deny")
        turn = await chat.wait_turn("done", 1)
        await expect(turn.locator(".tool .state")).to_have_text("failed")
        assert made_by_tools(stage, "no.txt") == []


async def test_a_prompt_that_somebody_else_settles_goes_away(staged: Staging) -> None:
    """Another client's answer, and the broker's own when nobody answers in time, take the prompt off the page."""
    config = {"turn": {"permission_timeout_s": 2}}
    async with staged(config) as stage, stage.chat() as chat:
        prompt = chat.page.locator("#prompt")
        session = (await chat.page.evaluate("JSON.parse(sessionStorage.getItem('broker.conversation'))"))["id"]
        async with connected(stage.broker.url, hello={"session": {"mode": "resume", "id": session}}) as other:
            await chat.say('Do [[sim tool="Bash:touch yes.txt" tokens=2]]')
            await prompt.wait_for()
            asked = await other.prompt()
            await other.answer(asked["request_id"], behavior="allow")
            await chat.wait_turn("done", 0)
        await expect(prompt).to_be_hidden()
        await chat.say('Do [[sim tool="Bash:touch no.txt" tokens=2]]')
        await prompt.wait_for()
        await chat.wait_turn("done", 1)
        await expect(prompt).to_be_hidden()
        assert made_by_tools(stage, "no.txt") == []


async def test_queued_messages_wait_and_can_be_withdrawn(staged: Staging) -> None:
    """While a turn runs further messages wait below it; a withdrawn one never reaches the CLI, the other one runs."""
    async with staged() as stage, stage.chat() as chat:
        await chat.say("First [[sim tokens=5000 itl_ms=10]]")
        await chat.wait_words(3)
        await chat.say("Second [[sim tokens=2]]")
        await chat.say("Third [[sim tokens=2]]")
        await chat.wait_turn("queued", 1)
        waiting = await chat.wait_turn("queued", 2)
        await expect(waiting).to_contain_text("Queued behind 2")
        await (await chat.wait_turn("queued", 1)).get_by_role("button", name="Cancel").dispatch_event("click")
        withdrawn = await chat.wait_turn("failed", 1)
        await expect(withdrawn).to_contain_text("Withdrawn")
        await chat.page.click("#stop")
        await chat.wait_turn("done", 0)
        await chat.wait_turn("done", 2)
        assert await chat.words(2) == "third0 third1 "
        assert len(user_ids(stage.broker.ledger_rows())) == 2


async def test_failures_are_named(staged: Staging) -> None:
    """A refused message, a failing API and a process that dies show their codes, and the words can be used again."""
    async with staged() as stage, stage.chat() as chat:
        await chat.say("/clear")
        refused = await chat.wait_turn("failed", 0)
        await expect(refused.locator(".problem code")).to_have_text("option_not_allowed")
        await refused.get_by_role("button", name="Edit and send again").click()
        await expect(chat.page.locator("#message")).to_have_value("/clear")
        await expect(chat.page.locator(".turn")).to_have_count(0)

        await chat.say("Hello [[sim error=529]]")
        failed = await chat.wait_turn("failed", 0)
        await expect(failed.locator(".problem code")).to_have_text("upstream_overloaded")

        await chat.say("Die [[sim die_after=3]]")
        died = await chat.wait_turn("failed", 1)
        await expect(died.locator(".problem code")).to_have_text("cli_exited")

        await chat.say("Again [[sim tokens=2]]")
        turn = await chat.wait_turn("done", 2)
        assert await chat.words(2) == "again0 again1 "
        assert await turn.locator(".start").text_content() == "restored"


async def test_replies_are_text_and_never_markup(staged: Staging) -> None:
    """Markdown becomes elements; HTML, in questions and in replies, stays the text that it is."""
    evil = '<img src=x onerror="document.title=1"><script>document.title=2</script>'
    reply = f"# Title\n\nSome **bold** `code` {evil}\n\n- one\n- two\n\n```js\nlet x = '<b>';\n```"
    async with staged() as stage, stage.chat() as chat:
        quoted = reply.replace("\\", "\\\\").replace('"', '\\"')
        await chat.say(f'{evil} [[sim text="{quoted}"]]')
        turn = await chat.wait_turn("done", 0)
        assert await turn.locator("img, script").count() == 0
        await expect(turn.locator(".text")).to_contain_text(evil)
        await expect(turn.locator(".question")).to_contain_text(evil)
        assert await turn.locator(".text h3").text_content() == "Title"
        assert await turn.locator(".text strong").text_content() == "bold"
        assert await turn.locator(".text li").all_text_contents() == ["one", "two"]
        assert await turn.locator(".text pre code").text_content() == "let x = '<b>';"
        assert await chat.page.title() == "Session Broker"


async def test_the_model_is_picked_before_and_during_a_conversation(staged: Staging) -> None:
    """The picker lists what the broker offers; a choice reaches a live process, and is bound to the next one."""
    config = {"models": ["sonnet", "opus", "haiku"]}
    async with staged(config) as stage, stage.chat() as chat:

        def models() -> list[str]:
            requests = (message["request"] for _, message in said_to_cli(stage.broker.ledger_rows(), "control_request"))
            return [request["model"] for request in requests if request["subtype"] == "set_model"]

        names = await chat.page.locator("#model option").all_text_contents()
        assert names == ["Default model", "sonnet", "opus", "haiku"]
        await chat.page.select_option("#model", "opus")
        await eventually(lambda: models() == ["opus"])
        await chat.say("Hi [[sim tokens=1]]")
        await chat.wait_turn("done", 0)
        await chat.page.click("#new")
        await expect(chat.page.locator(".turn")).to_have_count(0)
        await chat.wait_connected()
        await eventually(lambda: models() == ["opus", "opus"])
        await expect(chat.page.locator("#model")).to_have_value("opus")


async def test_a_new_conversation_ends_the_old_one(staged: Staging) -> None:
    """The page is empty again, the old process is given back, and the new one remembers nothing."""
    async with staged({"pool": {"profiles": {"default": {"warm": 1}}}}) as stage, stage.chat() as chat:
        await chat.say("I am Ada")
        await chat.wait_turn("done", 0)
        await chat.page.click("#new")
        await expect(chat.page.locator("#empty")).to_be_visible()
        await chat.wait_connected()
        await chat.say("Who am I?")
        await chat.wait_turn("done", 0)
        assert "Earlier messages of yours: 0." in await chat.words()
        await stage.broker.wait_pool(leased=1, stopping=0)


async def test_a_page_of_a_foreign_origin_cannot_connect(staged: Staging) -> None:
    """The same script is let in from the broker's own page and refused from a page of another port."""
    script = """url => new Promise(resolve => {
        const socket = new WebSocket(url, ['broker.v1']);
        socket.onopen = () => { socket.close(); resolve('open'); };
        socket.onerror = () => resolve('refused');
    })"""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi")
        await writer.drain()
        writer.close()

    async with staged() as stage, stage.chat() as chat:
        assert await chat.page.evaluate(script, stage.broker.url) == "open"
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as foreign:
            await chat.page.goto(f"http://127.0.0.1:{foreign.sockets[0].getsockname()[1]}/")
            assert await chat.page.evaluate(script, stage.broker.url) == "refused"
            await chat.page.goto("about:blank")
