"""The page for people who type, who listen, who hold a phone, who prefer the dark, who dislike motion."""

from typing import Any

import pytest
from playwright.async_api import expect

from tests.browser.stage import Chat, Staging

pytestmark = pytest.mark.browser

PHONE: dict[str, Any] = {"viewport": {"width": 360, "height": 640}, "is_mobile": True, "has_touch": True}
LONG = "x" * 300
WIDE = f"# {LONG}\n\n{LONG} https://example.com/{LONG}\n\n- {LONG}\n\n```\n{LONG}\n```"

CONTRAST = """() => {
    const channel = value => (value /= 255) <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
    const light = color => {
        const [r, g, b] = color.match(/[\\d.]+/g).map(Number);
        return 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
    };
    const ground = element => {
        for (let one = element; one; one = one.parentElement) {
            const color = getComputedStyle(one).backgroundColor;
            if (color !== 'rgba(0, 0, 0, 0)') return color;
        }
    };
    const ratio = element => {
        const [a, b] = [getComputedStyle(element).color, ground(element)].map(light).sort((x, y) => y - x);
        return (a + 0.05) / (b + 0.05);
    };
    const seen = [...document.querySelectorAll('body *')].filter(element =>
        element.checkVisibility() && !element.disabled && !element.closest('.unseen, .skip, svg')
        && [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim()));
    const name = element => `${element.tagName}.${element.className} ${element.textContent.slice(0, 30)}`;
    return seen.map(element => [name(element), ratio(element)]);
}"""

OVERFLOWS = """() => [...document.querySelectorAll('html, body, header, main, footer, .turn, .reply, .text, #composer')]
    .filter(element => element.scrollWidth > element.clientWidth + 1)
    .map(element => `${element.tagName}.${element.className}`)"""

SMALL_TARGETS = """() => [...document.querySelectorAll('button, select, textarea, input, summary')]
    .filter(element => element.checkVisibility())
    .map(element => [element.textContent || element.id, element.getBoundingClientRect()])
    .filter(([, box]) => Math.min(box.width, box.height) < 24)
    .map(([name]) => name)"""


async def fill_with_everything(chat: Chat) -> None:
    """A conversation with every kind of thing in it, a prompt open."""
    quoted = WIDE.replace('"', '\\"')
    await chat.say(f'Wide {LONG} [[sim text="{quoted}"]]')
    await chat.wait_turn("done", 0)
    await chat.say("No [[sim error=529]]")
    await chat.wait_turn("failed", 1)
    await chat.say(f'Tool [[sim thinking tool="Bash:touch {LONG}" tokens=3]]')
    await chat.page.locator("#prompt").wait_for()
    await chat.say("Waits")
    await chat.wait_turn("queued", 3)


async def focused(chat: Chat) -> str:
    """The id of what has the focus."""
    return str(await chat.page.evaluate("document.activeElement.id"))


async def test_everything_works_with_the_keyboard_alone(staged: Staging) -> None:
    """Enter sends, Shift+Enter breaks the line, Escape stops, Tab reaches the prompt's buttons and the settings; the
    focus is never lost and always visible."""
    async with staged() as stage, stage.chat() as chat:
        keyboard = chat.page.keyboard
        assert await focused(chat) == "message"
        await keyboard.type("one")
        await keyboard.press("Shift+Enter")
        await keyboard.type("two [[sim tokens=5000 itl_ms=10]]")
        await keyboard.press("Enter")
        await chat.wait_words(3)
        await expect(chat.turn().locator(".question")).to_have_text("one\ntwo [[sim tokens=5000 itl_ms=10]]")
        assert await focused(chat) == "message"
        await keyboard.press("Escape")
        await chat.wait_turn("done", 0)
        assert await focused(chat) == "message"

        await keyboard.type('Do [[sim tool="Bash:touch yes.txt" tokens=2]]')
        await keyboard.press("Enter")
        await chat.until("() => document.activeElement.id === 'prompt'")
        await keyboard.press("Enter")  # what was meant for the composer must not answer
        assert await chat.page.locator("#prompt").is_visible()
        await expect(chat.page.locator("#allow")).to_be_enabled()
        for _ in range(3):
            await keyboard.press("Tab")
        assert await focused(chat) == "allow"
        assert await chat.style("#allow", "outlineStyle") == "solid"
        await keyboard.press("Enter")
        await chat.wait_turn("done", 1)
        await chat.until("() => document.activeElement.id === 'message'")

        for _ in range(6):
            await keyboard.press("Shift+Tab")
            if await focused(chat) == "open-settings":
                break
        assert await chat.style("#open-settings", "outlineStyle") == "solid"
        await keyboard.press("Enter")
        await expect(chat.page.locator("#settings")).to_be_visible()
        await keyboard.press("Escape")
        await expect(chat.page.locator("#settings")).to_be_hidden()
        assert await focused(chat) == "open-settings"


async def test_a_prompt_does_not_take_the_focus_from_somebody_who_types(staged: Staging) -> None:
    """With words in the composer the focus stays there, and Enter queues a message instead of allowing a tool."""
    async with staged() as stage, stage.chat() as chat:
        await chat.say('Do [[sim ttft_ms=500 tool="Bash:touch yes.txt" tokens=2]]')
        await chat.page.keyboard.type("meanwhile")
        await chat.page.locator("#prompt").wait_for()
        assert await focused(chat) == "message"
        await chat.page.keyboard.press("Enter")
        await chat.wait_turn("queued", 1)
        assert list(stage.broker.state.glob("sessions/*/work/yes.txt")) == []


async def test_a_reply_is_read_out_in_sentences(staged: Staging) -> None:
    """The live region gets whole sentences, each once, and the end; never token by token."""
    sentences = [f"This is sentence number {n} of the reply, which is long enough." for n in range(6)]
    async with staged() as stage, stage.chat() as chat:
        await chat.page.evaluate("""() => {
            window.heard = [];
            new MutationObserver(changes => changes.forEach(({addedNodes}) =>
                addedNodes.forEach(node => window.heard.push(node.textContent))))
                .observe(document.getElementById('announcer'), {childList: true});
        }""")
        await chat.say(f'Say [[sim itl_ms=5 text="{" ".join(sentences)}"]]')
        await chat.wait_turn("done", 0)
        await chat.until("() => window.heard.at(-1) === 'End of the reply.'")
        heard = await chat.page.evaluate("window.heard")
        assert "".join(heard[:-1]).split() == " ".join(sentences).split()
        assert 2 <= len(heard) <= 8
        assert await chat.page.locator("#announcer").get_attribute("aria-live") == "polite"


async def test_a_phone_shows_everything_without_sideways_scrolling(staged: Staging) -> None:
    """At 360 pixels nothing overflows but code in its own box, and every control is large enough for a finger."""
    async with staged() as stage, stage.chat(**PHONE) as chat:
        assert await chat.page.evaluate(OVERFLOWS) == []
        await fill_with_everything(chat)
        assert await chat.page.evaluate(OVERFLOWS) == []
        assert await chat.page.evaluate(SMALL_TARGETS) == []
        for selector in ("#allow", "#deny", "#message", "#stop"):
            await expect(chat.page.locator(selector)).to_be_in_viewport(ratio=1)
        await chat.page.click("#open-settings")
        assert await chat.page.evaluate(OVERFLOWS) == []
        assert await chat.page.evaluate("document.activeElement.closest('dialog') !== null")
        await chat.page.get_by_role("button", name="Save").scroll_into_view_if_needed()


async def test_dark_and_light_follow_the_system_and_can_be_read(staged: Staging) -> None:
    """Either scheme has its own colours, and every text stands out from its ground by 4.5 to 1 at least."""
    grounds = {}
    async with staged() as stage:
        for scheme in ("light", "dark"):
            async with stage.chat(color_scheme=scheme, reduced_motion="reduce") as chat:
                await fill_with_everything(chat)
                pairs = await chat.page.evaluate(CONTRAST)
                assert len(pairs) > 15
                assert [(name, round(ratio, 2)) for name, ratio in pairs if ratio < 4.5] == []
                grounds[scheme] = await chat.style("body", "backgroundColor")
    assert grounds == {"light": "rgb(252, 251, 248)", "dark": "rgb(24, 23, 21)"}


async def test_reduced_motion_stills_the_page(staged: Staging) -> None:
    """Who asks for less motion sees no animation while a reply is awaited; who does not sees one."""
    async with staged() as stage:
        for wish, animations in (("reduce", "none"), ("no-preference", "breathe")):
            async with stage.chat(reduced_motion=wish) as chat:
                await chat.say("Slow [[sim ttft_ms=3000 tokens=1]]")
                await chat.page.locator(".dots i").first.wait_for()
                assert await chat.style(".dots i", "animationName") == animations
