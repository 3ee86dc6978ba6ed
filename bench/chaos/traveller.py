"""One tenant of a chaos run: says what the plan says, loses its connections, comes back and asks for what it missed.

It behaves as the protocol asks of a client: a hello with the epoch and the last seq of what it received whole, and its
message again, under the same id, until it knows how it ended.  Owner: one task of ``bench.chaos.world``.
"""

import random
from collections.abc import Callable
from itertools import count

import anyio

from bench.chaos.checker import Checker
from bench.chaos.link import Link, linked
from bench.chaos.plan import Step, Trouble, steps
from bench.chaos.violations import Kind
from bench.clock import now
from bench.fault_proxy import FaultProxy
from bench.faults import At, How, Lane
from bench.report import Subject
from bench.tenant import TenantFailed

DEADLINE_S = 60.0
"""For one message, over all of its connections."""
SILENCE_S = 5.0
"""A turn in which nothing comes for so long: the client takes its connection for dead."""
NO_PROCESS = "closed 4004 "
"""Behind an error that ``Checker`` judges."""
RETRY_S = (0.05, 0.3)


class Traveller:
    """``url`` is that of the present broker; ``generation`` is odd while one is up, and grows with each change."""

    def __init__(
        self, number: int, seed: int, canary: str, proxy: FaultProxy, checker: Checker, subject: Subject,
        url: Callable[[], str], generation: Callable[[], int],
    ) -> None:  # fmt: skip
        self.name = f"t{number}"
        self._steps = steps(seed, number)
        self._canary = canary
        self._proxy = proxy
        self._checker = checker
        self._subject = subject
        self._url = url
        self._generation = generation
        self._chance = random.Random(f"{seed} traveller {number}")
        self._link: Link | None = None
        self._is_welcome = False
        self._born_in = 0
        self._cuts = 0
        self._excuse = False
        """The end of this connection is ours, or the plan's."""
        self._frames = 0
        self._asked = 0
        self._asked_at = 0.0
        self._said_at = 0.0
        self._is_first_delta_due = False

    async def run(self, ends_at: float) -> None:
        """One message after another until ``ends_at``; the one that is under way is brought to its end."""
        try:
            for number in count(1):
                step = next(self._steps)
                await anyio.sleep(min(step.think_s, max(0.0, ends_at - now())))
                if now() >= ends_at:
                    return
                await self._step(number, step)
        finally:
            await self._drop()

    async def _step(self, number: int, step: Step) -> None:
        self._checker.counts[f"trouble: {step.trouble.value}"] += 1
        message_id = f"{self.name}-{number}"
        messages = {message_id: step.text(self._canary)}
        if step.trouble is Trouble.QUEUE:
            messages[f"{message_id}b"] = f"{self._canary} waits [[sim tokens=5]]"
        cuts = list(step.cuts)
        if step.trouble in (Trouble.CUT, Trouble.HOLE, Trouble.SLOW):
            await self._drop()
        deed, self._excuse = step.trouble, self._excuse or step.is_huge
        deadline, self._frames, self._is_first_delta_due = now() + DEADLINE_S, 0, step.trouble is Trouble.NONE
        began, connections = now(), 0
        if self._link is not None:
            self._say(messages)
        while not all(self._checker.resolved(self.name, one) for one in messages):
            if now() > deadline:
                where = "no connection" if self._link is None else f"connected, welcome {self._is_welcome}"
                if self._link is not None:
                    where += f", {self._link.bytes} bytes in {now() - self._asked_at:.1f} s, {connections} connections"
                self._checker.violations.add(Kind.HUNG, self.name, f"{list(messages)}, {deed.value}, {where}")
                await self._drop()
                return
            if self._link is None:
                connections += 1
                await self._come(cuts.pop(0) if cuts else None, step, messages)
            elif self._link.failure is not None:
                self._judge_end(self._link.failure)
                await self._drop()
            elif self._frames >= step.after and await self._do(deed, step):
                deed = Trouble.NONE
            else:
                await self._wait()
        if step.trouble is Trouble.NONE and self._link is not None:
            self._subject.series["turn"].add(now() - began)

    async def _do(self, deed: Trouble, step: Step) -> bool:
        """What the client itself does in mid-turn; False when there is nothing to do."""
        assert self._link is not None
        match deed:
            case Trouble.INTERRUPT:
                if not self._frames or not self._is_welcome:
                    return False
                self._asked += 1
                request = {"request_id": f"{self.name}-i{self._asked}", "request": {"subtype": "interrupt"}}
                self._send({"type": "control_request", **request})
            case Trouble.STALL:
                self._link.stall()
                await anyio.sleep(step.pause_s)
                self._link.go_on()
            case Trouble.LEAVE:
                await self._drop()
                await anyio.sleep(step.pause_s)
            case _:
                return False
        return True

    async def _wait(self) -> None:
        link = self._link
        assert link is not None
        seen, began = link.bytes, now()
        await link.wait_change(SILENCE_S)
        if link.bytes == seen and link.failure is None and now() - began >= SILENCE_S:
            self._checker.counts["connections given up for silence"] += 1
            await self._drop()

    async def _come(self, at: At | None, step: Step, messages: dict[str, str]) -> None:
        """Connect, say hello, and say again whatever has not ended."""
        if at is not None:
            self._proxy.arm(at)
        is_slow = step.trouble is Trouble.SLOW
        self._proxy.down, self._proxy.up = (step.down, step.up) if is_slow else (Lane(), Lane())
        self._cuts, self._excuse, self._is_welcome = (
            self._proxy.cuts,
            step.is_huge or (at is not None and at.how is How.HOLE),
            False,
        )
        self._born_in = self._generation()
        self._asked_at = now()
        self._checker.connecting(self.name)
        try:
            self._link = await linked(self._url(), self._proxy.port, self._take)
        except TenantFailed as error:
            self._judge_end(str(error))
            await anyio.sleep(self._chance.uniform(*RETRY_S))
            return
        epoch, last_seq = self._checker.position(self.name)
        session = {"mode": "open", "id": self.name, "last_seq": last_seq} | ({"epoch": epoch} if epoch else {})
        self._send({"type": "broker.hello", "session": session, "client": {"instance": self.name}})
        self._say(messages)

    def _say(self, messages: dict[str, str]) -> None:
        self._said_at = now()
        for message_id, text in messages.items():
            if not self._checker.resolved(self.name, message_id):
                self._checker.said(self.name, message_id)
                self._send({"type": "user_message", "id": message_id, "content": text})

    def _send(self, frame: dict[str, object]) -> None:
        assert self._link is not None
        if self._link.failure is None:
            self._link.send(frame)

    def _take(self, text: str, at: float) -> None:
        self._checker.received(self.name, text)
        if text.startswith('{"type":"broker.welcome"'):
            self._is_welcome = True
            self._subject.series["welcome"].add(at - self._asked_at)
        elif text.startswith('{"type":"stream_event"'):
            self._frames += 1
            if self._is_first_delta_due and '"content_block_delta"' in text:
                self._is_first_delta_due = False
                self._subject.series["ttft"].add(at - self._said_at)

    def _judge_end(self, why: str) -> None:
        """Whether anything was done to the connection that has ended."""
        self._checker.counts["connections that ended"] += 1
        was_up = self._generation() == self._born_in and self._born_in % 2 == 1
        is_told = self._proxy.cuts > self._cuts or self._excuse or not was_up or why.startswith(NO_PROCESS)
        if not is_told:
            self._checker.violations.add(Kind.DROPPED, self.name, why)

    async def _drop(self) -> None:
        if self._link is not None:
            link, self._link = self._link, None
            await link.leave()
