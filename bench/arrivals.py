"""Tenants that arrive: one, one after another at a fixed pace, or many at once.

Callers: the series of ``cold-vs-warm``.  Every figure begins when the bytes of hello are handed to the kernel.
"""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Final

import anyio

from bench.clock import LoopLag, now
from bench.samples import Samples
from bench.tenant import Tenant, TenantFailed, connect

Options = Callable[[], Mapping[str, Any]]
"""Makes the options of the next tenant's hello."""

TEXT: Final = "Hello"
DEADLINE_S: Final = 120.0


@dataclass(frozen=True)
class Arrival:
    """One tenant's start; seconds."""

    hello_at: float
    welcome: float
    first_delta: float | None
    ready: float
    """The broker's own figure: hello decoded to the last answer of the bind."""
    start: str
    """``warm`` or ``cold``, as welcome told."""


def options_of(seed: int) -> Options:
    """Options with a credential of their own for each tenant; the model is the profile's, by its alias."""
    number = 0

    def following() -> Mapping[str, Any]:
        nonlocal number
        number += 1
        return {
            "credentials": {"oauth_token": f"bench-{seed}-{number}"},
            "model": "sonnet",
            "system_prompt": f"You are the assistant of tenant {number}. Answer briefly.",
            "allowed_tools": ["Read", "Bash(echo:*)"],
            "disallowed_tools": ["WebFetch", "Bash(rm:*)"],
        }

    return following


async def one(url: str, options: Mapping[str, Any], text: str | None = TEXT) -> Arrival:
    """One tenant, whose message follows hello without waiting; its turn ends before this returns.

    Raises ``TenantFailed``, ``OSError``.
    """
    async with connect(url) as tenant:
        tenant.hello(options, text)
        return await _arrived(tenant, with_message=text is not None)


async def _arrived(tenant: Tenant, *, with_message: bool) -> Arrival:
    welcome = await tenant.wait_welcome(DEADLINE_S)
    first_delta = None
    if with_message:
        first_delta = await tenant.wait_first_delta(DEADLINE_S)
        await tenant.wait_end(DEADLINE_S)
    assert tenant.hello_at is not None
    return Arrival(tenant.hello_at, welcome, first_delta, tenant.ready_ms / 1e3, tenant.start)


def checked(arrivals: list[Arrival], expected: str) -> list[Arrival]:
    """``arrivals``.  Raises ``TenantFailed``: a warm figure that a cold start went into would be worth nothing."""
    others = [arrival.start for arrival in arrivals if arrival.start != expected]
    if others:
        raise TenantFailed(f"{len(others)} of {len(arrivals)} starts were {others[0]!r}, not {expected!r}")
    return arrivals


async def at_once(
    url: str,
    count: int,
    options: Options,
    lag: LoopLag,
    text: str | None = TEXT,
    around: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> list[Arrival]:
    """``count`` open sockets say hello in the same moment; all stay until the last one has arrived.

    ``around`` is entered before the first hello and left after the last arrival.  Raises ``TenantFailed``, ``OSError``.
    """
    arrivals: list[Arrival] = []

    async def follow(tenant: Tenant) -> None:
        arrivals.append(await _arrived(tenant, with_message=text is not None))

    async with AsyncExitStack() as stack:
        tenants = [await stack.enter_async_context(connect(url)) for _ in range(count)]
        asked = [options() for _ in tenants]
        with around():
            async with _watched(lag), anyio.create_task_group() as group:
                for tenant, hello in zip(tenants, asked, strict=True):
                    tenant.hello(hello, text)
                    group.start_soon(follow, tenant)
    return arrivals


async def paced(
    url: str, count: int, every_s: float, options: Options, lag: LoopLag, text: str | None = None
) -> tuple[list[Arrival], Samples]:
    """``count`` tenants, one per ``every_s`` seconds whether or not the one before has arrived; all stay to the end.

    Returns the arrivals and how late each connection was begun.  Raises ``TenantFailed``, ``OSError``.
    """
    arrivals: list[Arrival] = []
    late = Samples()
    ended = anyio.Event()

    async def arrive(hello: Mapping[str, Any]) -> None:
        async with connect(url) as tenant:
            tenant.hello(hello, text)
            arrivals.append(await _arrived(tenant, with_message=text is not None))
            if len(arrivals) == count:
                ended.set()
            await ended.wait()

    async with anyio.create_task_group() as group, _watched(lag):
        began = now()
        for number in range(count):
            due = began + number * every_s
            await anyio.sleep(max(0.0, due - now()))
            late.add(now() - due)
            group.start_soon(arrive, options())
        await ended.wait()
    return arrivals, late


@asynccontextmanager
async def _watched(lag: LoopLag) -> AsyncIterator[None]:
    """Sample the loop's lag for as long as the block lasts."""
    async with anyio.create_task_group() as group:
        group.start_soon(lag.watch)
        yield
        group.cancel_scope.cancel()
