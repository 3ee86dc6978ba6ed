"""What a browser test stands on: a broker with the simulated CLI, a way to it that can be cut, a headless Chromium.

Callers: the tests of this folder: ``async with staged() as stage, stage.chat() as chat``.  Chromium reaches the broker
under two names: its own address, and ``broker.test`` with a port that leads through the proxy.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from playwright.async_api import Browser, ConsoleMessage, Locator, Page, async_playwright

from tests.browser.chromium import NAME
from tests.kit.broker import Broker, running_broker
from tests.kit.proxy import FaultProxy, serving

DEADLINE_MS = 30_000
EXPECTED_COMPLAINTS = ("WebSocket connection to", "Failed to load resource")
"""What Chromium itself writes to the console when a connection cannot be made."""


class Gate(FaultProxy):
    """A fault proxy that can also be shut: while it is, every connection is reset at once."""

    is_shut = False
    accepted = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        if self.is_shut:
            writer.transport.abort()
        else:
            await super().serve(reader, writer)

    def shut(self) -> None:
        """Cut what is open and let nothing through until ``is_shut`` is False again."""
        self.is_shut = True
        self.cut_all()


class Chat:
    """One page.  Every method waits, at most ``DEADLINE_MS``."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.complaints: list[str] = []
        """Exceptions of the page, violations of its content security policy, and other errors on its console."""
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", self._on_console)

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not message.text.startswith(EXPECTED_COMPLAINTS):
            self.complaints.append(message.text)

    async def wait_connected(self) -> None:
        """Until the page says so."""
        await self.page.wait_for_selector('#status[data-state="ready"]')

    async def say(self, text: str) -> None:
        """Type a message and send it."""
        await self.page.fill("#message", text)
        await self.page.press("#message", "Enter")

    def turn(self, index: int = -1) -> Locator:
        """A turn; the last one by default."""
        turns = self.page.locator(".turn")
        return turns.last if index < 0 else turns.nth(index)

    async def wait_turn(self, state: str, index: int) -> Locator:
        """Until turn ``index`` is in ``state``."""
        turn = self.turn(index)
        await turn.and_(self.page.locator(f'[data-state="{state}"]')).wait_for()
        return turn

    async def words(self, index: int = -1) -> str:
        """The words of a reply as they stand in the document."""
        return "".join(await self.turn(index).locator(".text").all_text_contents())

    async def until(self, script: str, argument: Any = None) -> None:
        """Until a JavaScript function (the page's policy forbids mere expressions) returns something true."""
        await self.page.wait_for_function(script, arg=argument)

    async def wait_words(self, count: int, index: int = -1) -> None:
        """Until a reply has at least that many words."""
        script = """([count, index]) => {
            const text = [...document.querySelectorAll('.turn')].at(index)?.querySelector('.text')?.textContent ?? '';
            return text.split(' ').length > count;
        }"""
        await self.until(script, [count, index])

    async def style(self, selector: str, name: str) -> str:
        """A computed style."""
        script = "(element, name) => getComputedStyle(element)[name]"
        return str(await self.page.locator(selector).first.evaluate(script, name))


@dataclass
class Stage:
    """A running broker, the proxy before it and the browser."""

    broker: Broker
    proxy: Gate
    browser: Browser

    @property
    def own_url(self) -> str:
        """The page at the broker's own address: a secure origin, since it is loopback."""
        return f"http://127.0.0.1:{self.broker.port}/"

    @property
    def proxied_url(self) -> str:
        """The page by way of the proxy: a plain http origin, where ``crypto.randomUUID`` does not exist."""
        return f"http://{NAME}:{self.proxy.port}/"

    @asynccontextmanager
    async def chat(self, *, proxied: bool = False, is_connected: bool = True, **context: Any) -> AsyncIterator[Chat]:
        """Open the page in a profile of its own.  In the end it must have had no reason to complain."""
        profile = await self.browser.new_context(**context)
        profile.set_default_timeout(DEADLINE_MS)
        try:
            chat = Chat(await profile.new_page())
            await chat.page.goto(self.proxied_url if proxied else self.own_url)
            if is_connected:
                await chat.wait_connected()
            yield chat
            assert chat.complaints == []
        finally:
            await profile.close()


Staging = Callable[..., AbstractAsyncContextManager[Stage]]


@asynccontextmanager
async def stage_at(folder: Path, devtools: str, config: Mapping[str, Any] | None = None) -> AsyncIterator[Stage]:
    """Start a broker and a gate, and connect to the Chromium at ``devtools``."""
    async with _gate() as gate:
        names = {
            "server": {"allowed_hosts": [NAME], "allowed_origins": [f"http://{NAME}:{gate.port}"]},
            "stop": {"drain_timeout_s": 0.5},  # some tests end with a prompt open
        }
        async with running_broker(folder, {**names, **(config or {})}) as broker, _connected(devtools) as browser:
            gate.target = broker.port
            yield Stage(broker, gate, browser)


@asynccontextmanager
async def _gate() -> AsyncIterator[Gate]:
    gate = Gate(0)
    async with serving(gate):
        yield gate


@asynccontextmanager
async def _connected(devtools: str) -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.connect_over_cdp(devtools, timeout=DEADLINE_MS)
        try:
            yield browser
        finally:
            await browser.close()
