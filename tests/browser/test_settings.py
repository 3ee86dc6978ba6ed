"""Who the page is and what it asks for: access token, credential, system prompt; and where it keeps them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.async_api import expect

from tests.browser.stage import Chat, Staging
from tests.kit.ledger import said_to_cli
from tests.oracle import Oracle

pytestmark = pytest.mark.browser


def make_token(folder: Path) -> tuple[str, str]:
    """A token of the tenant ``acme``, and the file that knows it."""
    run = subprocess.run([sys.executable, "-m", "broker", "token", "acme"], capture_output=True, text=True, check=True)
    token = next(word for word in run.stdout.split() if word.isascii() and "[" not in word and len(word) > 30)
    entry = run.stdout[run.stdout.index("[tenants.acme]") :]
    file = folder / "tenants.toml"
    file.write_text(entry)
    return token, str(file)


async def fill(chat: Chat, **fields: str) -> None:
    """Fill in the settings panel, which is open, and save."""
    for name, value in fields.items():
        await chat.page.fill(f'#settings [name="{name}"]', value)
    await chat.page.get_by_role("button", name="Save").click()


async def test_the_broker_asks_for_a_token_and_gets_it(tmp_path: Path, staged: Staging, oracle: Oracle) -> None:
    """Without a token the page opens its settings, a wrong one is named, the right one connects, a reload keeps it."""
    token, file = make_token(tmp_path)
    oracle.canaries.add(token)
    config = {"auth": {"mode": "tokens", "file": file}, "pool": {"isolation": "none"}}
    async with staged(config) as stage, stage.chat(is_connected=False) as chat:
        await expect(chat.page.locator("#settings")).to_be_visible()
        await expect(chat.page.locator('[name="token"]')).to_be_focused()
        await fill(chat, token="not-a-token")
        await expect(chat.page.locator("#banner")).to_contain_text("does not accept this access token")
        await expect(chat.page.locator("#settings")).to_be_visible()
        await fill(chat, token=token)
        await chat.wait_connected()
        await chat.say("Hi [[sim tokens=1]]")
        await chat.wait_turn("done", 0)
        await chat.page.reload()
        await chat.wait_connected()
        await chat.wait_turn("done", 0)


async def test_secrets_stay_in_this_tab(staged: Staging, oracle: Oracle) -> None:
    """What is entered is in the tab's session storage and nowhere else: no local storage, no cookie, no address."""
    secret = "canary-credential-6f1d"
    oracle.canaries.add(secret)
    async with staged() as stage, stage.chat() as chat:
        requests: list[str] = []
        chat.page.on("request", lambda request: requests.append(request.url))
        chat.page.on("websocket", lambda socket: requests.append(socket.url))
        await chat.page.click("#open-settings")
        await fill(chat, credential=secret, systemPrompt="You are terse.")
        await chat.wait_connected()
        await chat.say("Hi [[sim tokens=1]]")
        await chat.wait_turn("done", 0)
        assert await chat.page.evaluate("localStorage.length") == 0
        assert await chat.page.context.cookies() == []
        assert secret in await chat.page.evaluate("JSON.stringify({...sessionStorage})")
        assert requests
        assert not any(secret in url for url in [*requests, chat.page.url])
        sent = [json.dumps(message) for _, message in said_to_cli(stage.broker.ledger_rows())]
        assert any(secret in line for line in sent)
        assert any("You are terse." in line for line in sent)


async def test_a_system_prompt_waits_for_a_new_conversation(staged: Staging) -> None:
    """In mid-conversation a changed system prompt is kept for the next one, and the page says so."""

    async with staged() as stage, stage.chat() as chat:

        def prompts() -> list[object]:
            requests = (message["request"] for _, message in said_to_cli(stage.broker.ledger_rows(), "control_request"))
            return [request.get("systemPrompt") for request in requests if request["subtype"] == "initialize"]

        await chat.say("Hi [[sim tokens=1]]")
        await chat.wait_turn("done", 0)
        await chat.page.click("#open-settings")
        await fill(chat, systemPrompt="You are a pirate.")
        await expect(chat.page.locator(".notice")).to_contain_text("new conversation")
        assert prompts() == [None]
        await chat.page.click("#new")
        await expect(chat.page.locator(".turn")).to_have_count(0)
        await chat.wait_connected()
        assert prompts() == [None, ["You are a pirate."]]


async def test_a_changed_credential_is_told_before_the_next_turn(staged: Staging) -> None:
    """Saving another credential keeps the conversation and hands the new one to its process."""
    async with staged() as stage, stage.chat() as chat:
        await chat.say("I am Ada")
        await chat.wait_turn("done", 0)
        await chat.page.click("#open-settings")
        await fill(chat, credential="dummy-token-2")
        await chat.wait_connected()
        await chat.say("Who am I?")
        await chat.wait_turn("done", 1)
        assert "Earlier messages of yours: 1." in await chat.words(1)
        sent = [json.dumps(message) for _, message in said_to_cli(stage.broker.ledger_rows())]
        assert sum("dummy-token-2" in line for line in sent) == 1


async def test_a_refused_setting_is_named(staged: Staging) -> None:
    """A credential that cannot be one is refused by the page, a model that does not exist by the process."""
    async with staged({"models": ["sonnet", "claude-unknown-1"]}) as stage, stage.chat() as chat:
        await chat.page.click("#open-settings")
        await fill(chat, credential="two words")
        await expect(chat.page.locator("#settings")).to_be_visible()
        await chat.page.keyboard.press("Escape")
        await chat.page.select_option("#model", "claude-unknown-1")
        await expect(chat.page.locator(".notice")).to_contain_text("set_model")
        await expect(chat.page.locator("#model")).to_have_value("")
        await chat.page.evaluate("""() => {
            sessionStorage.removeItem('broker.conversation');
            sessionStorage.setItem('broker.settings', JSON.stringify({model: 'claude-unknown-1'}));
        }""")
        await chat.page.reload()
        await expect(chat.page.locator("#banner")).to_contain_text("A setting was refused")
        await chat.page.select_option("#model", "sonnet")
        await chat.wait_connected()
        await chat.say("Hi [[sim tokens=1]]")
        await chat.wait_turn("done", 0)
