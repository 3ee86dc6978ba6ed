"""GET /v1/sessions: a subject's conversations, the latest first, and nobody else's."""

import asyncio
import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.kit.broker import Broker, running_broker, started_broker
from tests.kit.client import connected
from tests.oracle import Oracle

ALICE, SERVER, OTHER = "brk_listing-alice", "brk_listing-server", "brk_other-server"


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory, oracle: Oracle) -> Iterator[Broker]:
    """A broker with two tenants."""
    folder = tmp_path_factory.mktemp("listing")
    oracle.canaries |= {ALICE, SERVER, OTHER}
    text = ""
    for tenant, tokens in {"acme": {ALICE: "alice", SERVER: "*"}, "other": {OTHER: "*"}}.items():
        entries = ", ".join(
            f'{{hash = "sha256:{hashlib.sha256(token.encode()).hexdigest()}", subject = "{subject}"}}'
            for token, subject in tokens.items()
        )
        text += f"[tenants.{tenant}]\ntokens = [{entries}]\n"
    (folder / "tenants.toml").write_text(text)
    config = {
        "auth": {"mode": "tokens", "file": "tenants.toml"},
        "pool": {"isolation": "none"},
        "session": {"detach_timeout_s": 0.3},
    }
    with started_broker(folder, config) as found:
        oracle.allow(pid=found.pid)
        yield found


async def listed(broker: Broker, token: str, query: str = "") -> list[dict[str, Any]]:
    """The rows that this token sees."""
    headers = {"Authorization": f"Bearer {token}"}
    status, body = await asyncio.to_thread(broker.get, f"/v1/sessions{query}", headers=headers)
    assert status == 200
    page = json.loads(body)
    assert page["has_more"] is False
    rows: list[dict[str, Any]] = page["data"]
    return rows


def place(token: str, session_id: str, subject: str | None = None, mode: str = "open") -> dict[str, Any]:
    """Hello's fields."""
    auth = {"token": token} | ({"subject": subject} if subject else {})
    return {"auth": auth, "session": {"mode": mode, "id": session_id}}


async def test_a_subject_sees_its_own_the_latest_first(broker: Broker) -> None:
    """Id, state and times in UTC; what was active last stands first; a deleted one is gone."""
    assert await listed(broker, ALICE) == []
    async with connected(broker.url, hello=place(ALICE, "one")) as one:
        async with connected(broker.url, hello=place(ALICE, "two")) as two:
            await one.turn("hello")
            await two.turn("hello")
            rows = await listed(broker, ALICE)
            assert [(row["id"], row["state"], row["subject"]) for row in rows] == [
                ("two", "idle", "alice"), ("one", "idle", "alice"),
            ]  # fmt: skip
            now = datetime.now(UTC)
            for row in rows:
                assert set(row) == {"id", "subject", "state", "last_activity", "created"}
                created, active = (datetime.fromisoformat(row[key]) for key in ("created", "last_activity"))
                assert timedelta(0) <= active - created
                assert now - created < timedelta(minutes=2)
                assert active - now < timedelta(seconds=1)
            await one.say("[[sim tokens=300 itl_ms=10]] word", "m-long")
            await one.until_type("stream_event")
            assert [(r["id"], r["state"]) for r in await listed(broker, ALICE)] == [("one", "running"), ("two", "idle")]
            await one.ask("interrupt", "c-1")
            await one.terminal("m-long")
            await two.send({"type": "broker.delete"})
            await two.closed()
            assert [row["id"] for row in await listed(broker, ALICE)] == ["one"]
    await broker.wait_pool(leased=0, stopping=0, starting=0)
    assert [(row["id"], row["state"]) for row in await listed(broker, ALICE)] == [("one", "hibernated")]


async def test_a_server_sees_its_tenant_or_one_subject_of_it(broker: Broker) -> None:
    """A token of ``*`` sees all of the tenant's, with ?subject= one's; never another tenant's."""
    async with connected(broker.url, hello=place(SERVER, "c-1", "carol")):
        async with connected(broker.url, hello=place(SERVER, "d-1", "dave")):
            everybody = {(row["subject"], row["id"]) for row in await listed(broker, SERVER)}
            assert {("carol", "c-1"), ("dave", "d-1")} <= everybody
            assert [row["id"] for row in await listed(broker, SERVER, "?subject=carol")] == ["c-1"]
            assert await listed(broker, SERVER, "?subject=nobody") == []
            assert [row for row in await listed(broker, ALICE) if row["subject"] != "alice"] == []
            assert await listed(broker, OTHER) == []
            assert await listed(broker, OTHER, "?subject=carol") == []


@pytest.mark.parametrize(
    ("headers", "query", "status"),
    [
        ({}, "", 401),
        ({"Authorization": "Bearer wrong"}, "", 401),
        ({"Authorization": "Basic YTpi"}, "", 401),
        ({"Authorization": f"Bearer {ALICE}"}, "?subject=carol", 403),
        ({"Authorization": f"Bearer {ALICE}"}, "?subject=alice", 200),
        ({"Authorization": f"Bearer {ALICE}"}, "?limit=5", 400),
        ({"Authorization": f"Bearer {ALICE}"}, "?subject=alice&subject=alice", 400),
        ({"Authorization": f"Bearer {SERVER}"}, "?" + "a=1&" * 200, 400),
    ],
)
def test_who_may_not_ask(broker: Broker, headers: dict[str, str], query: str, status: int) -> None:
    """No token and a bad one are 401 as for the socket, a foreign subject 403, an unknown query 400."""
    before = broker.metric("broker_protocol_errors_total", reason="unauthorized")
    assert broker.get(f"/v1/sessions{query}", headers=headers)[0] == status
    assert broker.metric("broker_protocol_errors_total", reason="unauthorized") - before == (status == 401)


async def test_without_tokens_everything_is_local(tmp_path: Path) -> None:
    """auth.mode none: the tenant is local, and a lazy session is listed before it has a process."""
    async with running_broker(tmp_path, {}) as broker:
        hello = {"session": {"mode": "new", "id": "a"}, "options": {"lazy": True}}
        async with connected(broker.url, hello=hello):
            status, body = await asyncio.to_thread(broker.get, "/v1/sessions")
            rows = json.loads(body)["data"]
            assert (status, [(row["id"], row["state"]) for row in rows]) == (200, [("a", "hibernated")])
        assert broker.get("/v1/sessions?subject=x")[0] == 200
