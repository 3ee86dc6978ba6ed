"""A thousand hellos that say they stopped reading somewhere: each gets the answer that is meant for it, and no frame of
anybody else's.

Two tenants, three subjects, one conversation each, whose every word is marked.  What is asked for is drawn at random:
whose conversation, by which id, which epoch, which place, which mode; what has to come is known from that alone.
"""

import hashlib
import os
import random
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from tests.kit.broker import Broker, started_broker
from tests.kit.client import connected, contiguous
from tests.kit.ledger import seq_of
from tests.oracle import Oracle
from tests.soak import LONG_S, size

VARIANTS = size(120, 1000)
WHO = ("acme/alice", "acme/bob", "beta/alice")
"""A token's text, too."""
KEPT_FRAMES = 40


def tenants() -> str:
    """The text of tenants.toml."""
    text = ""
    for tenant in ("acme", "beta"):
        own = [who for who in WHO if who.startswith(tenant)]
        rows = [
            f'{{hash = "sha256:{hashlib.sha256(who.encode()).hexdigest()}", subject = "{who.partition("/")[2]}"}}'
            for who in own
        ]
        text += f"[tenants.{tenant}]\ntokens = [{', '.join(rows)}]\n"
    return text


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory, oracle: Oracle) -> Iterator[Broker]:
    """A broker whose sessions keep their last frames alone."""
    folder: Path = tmp_path_factory.mktemp("variants")
    (folder / "tenants.toml").write_text(tenants())
    config = {
        "auth": {"mode": "tokens", "file": "tenants.toml"},
        "pool": {"isolation": "none", "profiles": {"default": {"warm": 3}}},
        "replay": {"frames": KEPT_FRAMES},
        "session": {"detach_timeout_s": 600},
    }
    with started_broker(folder, config) as found:
        oracle.allow(pid=found.pid)
        yield found


@dataclass(frozen=True)
class Conversation:
    """One subject's, as its client saw it."""

    who: str
    id: str
    cli_id: str
    epoch: str
    head: int
    texts: list[str]
    """The frames that are kept, from ``tail + 1`` on."""

    @property
    def tail(self) -> int:
        return self.head - len(self.texts)

    @property
    def mark(self) -> str:
        """Stands in whatever is said there."""
        return f"mark-of-{self.who.replace('/', '-')}-"


async def held(broker: Broker, who: str) -> Conversation:
    """A conversation of two turns, at rest."""
    session_id = f"conv-{who.replace('/', '-')}"
    hello = {"session": {"mode": "open", "id": session_id}, "options": {"model": "sonnet"}}
    async with connected(broker.url, headers=bearer(who), hello=hello) as client:
        mark = f"mark-of-{who.replace('/', '-')}-"
        for _ in range(2):
            await client.turn(f"[[sim tokens=60]] {mark}")
            await client.until(lambda frame: frame.get("state") == "idle")
        texts = [text for text in client.texts if seq_of(text) is not None][-KEPT_FRAMES:]
        cli_id = client.welcome["cli"]["session_id"]
        return Conversation(who, session_id, cli_id, client.welcome["epoch"], client.last_seq, texts)


def bearer(who: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {who}"}


@dataclass(frozen=True)
class Variant:
    """One hello: who says it, whose conversation it names (None: nobody's) and what it says of where it stopped."""

    who: str
    target: Conversation | None
    session: dict[str, Any]
    is_malformed: bool


PLACES: list[Any] = [-1, -(2**31), -(2**63), 2**53 + 1, 2**63, 2**64, 10**30, 1.5, "7", True, [], {}, 1e300]
"""No last_seq at all."""
EPOCHS: list[Any] = ["x" * 129, "a\x00", "a\n", 7, True, [], {}, 1.5]
IDS: list[Any] = ["", " ", "-x", ".", "../x", "a/b", "a b", "x" * 129, "é", "a\x00b", "a\nb", 7, True, [], {}]


def drawn(chance: random.Random, all_of_them: list[Conversation]) -> Variant:
    """A variant at random."""
    own = chance.choice(all_of_them)
    who, mode, is_malformed = own.who, "resume", False
    target: Conversation | None
    kind = chance.choices(("own", "foreign", "unknown", "bad id"), (4, 3, 3, 1))[0]
    if kind == "own":
        target = own
        session_id = chance.choice([own.id, own.cli_id])
        mode = chance.choice(["resume", "open"])
    elif kind == "foreign":
        target = chance.choice([other for other in all_of_them if other is not own])
        session_id = chance.choice([target.id, target.cli_id])
        mode = chance.choice(["resume", "fork"])
    else:
        target = None
        session_id = f"{chance.choice(all_of_them).id}{chance.randrange(10**6)}"
        mode = chance.choice(["resume", "fork"])
    session: dict[str, Any] = {"mode": mode, "id": session_id}
    if kind == "bad id":
        session["id"], is_malformed = chance.choice(IDS), True
    epochs = [own.epoch, *(other.epoch for other in all_of_them), "", "x" * 128, "ÿ", f"{chance.random()}"]
    if chance.random() < 0.8:
        session["epoch"] = chance.choice(epochs)
    if chance.random() < 0.05:
        session["epoch"], is_malformed = chance.choice(EPOCHS), True
    if chance.random() < 0.9:
        session["last_seq"] = chance.choice(
            [0, 1, own.tail, own.tail + 1, own.head - 1, own.head, own.head + 1, 2**31, 2**53, chance.randrange(10**6)]
        )
    if chance.random() < 0.15:
        session["last_seq"], is_malformed = chance.choice(PLACES), True
    return Variant(who, target if kind != "bad id" else None, session, is_malformed)


def expected(found: Conversation, session: dict[str, Any]) -> tuple[Any, list[str]]:
    """``lost``, and the frames that follow, of a hello that is welcome."""
    epoch, last_seq = session.get("epoch"), session.get("last_seq")
    if last_seq is None:
        return None, []
    if epoch is not None and epoch != found.epoch:
        return {"from": last_seq + 1, "to": None, "reason": "epoch_changed"}, found.texts
    if last_seq > found.head:
        return {"from": found.head + 1, "to": last_seq, "reason": "future_seq"}, []
    if last_seq < found.tail and (last_seq, epoch) != (0, None):
        return {"from": last_seq + 1, "to": found.tail, "reason": "too_far_behind"}, found.texts
    return None, found.texts[max(0, last_seq - found.tail) :]


async def answered(broker: Broker, variant: Variant, all_of_them: list[Conversation]) -> tuple[str, float]:
    """Ask, and compare; what it was, and after how many seconds it was known."""
    async with connected(broker.url, headers=bearer(variant.who)) as client:
        began, code = time.monotonic(), 0
        try:
            await client.hello(session=variant.session)
        except ConnectionClosed as closed:
            code = closed.rcvd.code if closed.rcvd else 1006
        took = time.monotonic() - began
        if code == 0:
            await client.sync()
        text = "".join(client.texts)
        for other in all_of_them:
            if other.who != variant.who:
                assert other.mark not in text
                assert other.epoch not in text
                assert other.cli_id not in text
        if variant.is_malformed:
            assert (code, [frame["code"] for frame in client.frames]) == (4500, ["bad_frame"]), (variant, client.frames)
            return "malformed", took
        if variant.target is None or variant.target.who != variant.who:
            kind = "unknown" if variant.target is None else "foreign"
            assert (code, client.texts) == (4504, []), (variant, client.frames)
            return kind, took
        assert code == 0, variant
        lost, texts = expected(variant.target, variant.session)
        assert client.welcome["lost"] == lost, variant
        assert client.welcome["resumed"] == (lost is None and "last_seq" in variant.session)
        assert [text for text in client.texts if seq_of(text) is not None] == texts, variant
        assert contiguous(client.frames)
        return lost["reason"] if lost else "welcome", took


@pytest.mark.timeout(LONG_S)
async def test_every_hello_gets_the_answer_that_is_meant_for_it(broker: Broker) -> None:
    """Typed, the same for what is unknown and for what is somebody else's, and never a frame of theirs."""
    seed = int(os.environ.get("VARIANTS_SEED", time.time_ns() % 1_000_000))
    print(f"VARIANTS_SEED={seed}")
    chance = random.Random(seed)
    all_of_them = [await held(broker, who) for who in WHO]
    kinds: Counter[str] = Counter()
    times: dict[str, list[float]] = {}
    for _ in range(VARIANTS):
        kind, took = await answered(broker, drawn(chance, all_of_them), all_of_them)
        kinds[kind] += 1
        times.setdefault(kind, []).append(took)
    took_ms = {kind: f"{statistics.median(found) * 1e3:.2f} ms" for kind, found in times.items()}
    print(f"{VARIANTS} hellos: {dict(kinds)}; medians {took_ms}")
    assert {"unknown", "foreign", "malformed", "welcome", "epoch_changed", "future_seq"} <= kinds.keys()
