"""One session of a load: connect, hello, messages, leave; and two ways to have many of them.

Callers: the commands.  A session that fails is counted by its reason and never raises.
"""

from collections.abc import Callable
from functools import partial

import anyio

from bench.clock import now
from bench.tenant import Tenant, TenantFailed, connect
from bench.traffic.meter import Meter
from bench.traffic.plan import Plan
from bench.traffic.script import Script

Wants = Callable[[float, int, int], bool]
"""Whether a message that is due then is to be said, after so many that were said and so many that counted."""
AGAIN_S = 1.0
"""After a failure, before the same session of a closed load with a duration connects anew."""
OPEN_WITHIN_S = 10.0


class Talker:
    """Sessions at ``url`` that follow ``script``."""

    def __init__(self, url: str, script: Script, meter: Meter) -> None:
        self._url = url
        self._script = script
        self._meter = meter

    async def session(self, due: float | None, wants: Wants) -> bool:
        """From connect to leave; returns whether all went well.

        ``due``: when it should have begun, and its first message been said: for a session that a plan sent.  None: its
        first message is due when it is welcome.
        """
        try:
            with self._meter.present():
                await self._talk(due, wants)
        except (TenantFailed, OSError) as error:
            self._meter.failed(error)
            return False
        return True

    async def _talk(self, due: float | None, wants: Wants) -> None:
        meter, script = self._meter, self._script
        began_at = now()
        since = began_at if due is None else due
        if due is not None:
            meter.add("slip", due, began_at - due)
        async with connect(self._url, min(OPEN_WITHIN_S, script.deadline_s)) as tenant:
            assert tenant.opened_at is not None
            meter.add("connect", since, tenant.opened_at - began_at)
            tenant.hello(script.options(), token=script.token)
            meter.add("welcome", since, await tenant.wait_welcome(script.deadline_s))
            meter.add("queue", since, tenant.ready_ms / 1e3)
            said = counted = 0
            due = now() if due is None else due
            while wants(due, said, counted):
                if said:
                    await self._think(due)
                with meter.underway():
                    ended_at = await self._turn(tenant, due)
                said += 1
                counted += meter.counts(due)
                due = ended_at + script.think_s

    async def _turn(self, tenant: Tenant, due: float) -> float:
        deadline_s = self._script.deadline_s
        tenant.say(self._script.text)
        await tenant.wait_answering(deadline_s)
        turn = await tenant.wait_end(deadline_s)
        self._meter.turn(due, turn)
        assert turn.ended_at is not None
        return turn.ended_at

    async def _think(self, due: float) -> None:
        await anyio.sleep(max(0.0, due - now()))
        late = now() - due
        self._meter.lateness.add(late)
        self._meter.add("slip", due, late)


async def closed(
    talker: Talker, meter: Meter, delays: list[float], turns: int | None, duration_s: float | None
) -> None:
    """A session for each of ``delays``, which is when it comes; each says its next message when it has its answer.

    With ``turns`` each leaves after so many that counted, or when it fails; with ``duration_s`` (of what is counted) it
    stays so long, and connects anew when it fails.
    """
    ends_at = None if duration_s is None else meter.counts_from + duration_s

    def wants(due: float, said: int, counted: int) -> bool:
        return due < ends_at if ends_at is not None else turns is None or counted < turns

    async def one(delay_s: float) -> None:
        await anyio.sleep(delay_s)
        while wants(now(), 0, 0):
            if await talker.session(None, wants) or ends_at is None:
                return
            await anyio.sleep(AGAIN_S)

    async with anyio.create_task_group() as group:
        for delay_s in delays:
            group.start_soon(one, delay_s)


async def opened(talker: Talker, meter: Meter, plan: Plan, seed: int, turns: int, most: int) -> None:
    """Sessions that arrive by ``plan`` whether or not those before have their answer; each says ``turns`` messages.

    At most ``most`` at the same time: whoever finds every place taken waits for one, and that wait is part of what it
    measures, as its start was due before.
    """
    places = anyio.Semaphore(most)
    excused_until = meter.began_at

    async def one(due: float) -> None:
        try:
            await talker.session(due, lambda due, said, counted: said < turns)
        finally:
            places.release()

    async with anyio.create_task_group() as group:
        for moment in plan.moments(seed):
            due = meter.began_at + moment
            await anyio.sleep(max(0.0, due - now()))
            meter.arrived += 1
            if due >= excused_until:
                # What a full house has made late is not this program's slowness.
                meter.lateness.add(now() - due)
            try:
                places.acquire_nowait()
            except anyio.WouldBlock:
                meter.waited += 1
                await places.acquire()
                excused_until = now()
            group.start_soon(partial(one, due))
