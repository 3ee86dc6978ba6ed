"""Who may connect, as whom, and for how long: tokens in three places, revocation, sessions of strangers."""

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.kit.broker import Broker, started_broker
from tests.kit.client import Client, connected
from tests.oracle import Oracle
from tests.waiting import eventually, eventually_sync

REVOKED_WITHIN_S = 5.0
ACME, SERVER, BETA = "brk_acme-alice-0123456789", "brk_acme-server-0123456789", "brk_beta-alice-0123456789"
"""Alice of acme; a server of acme that speaks for many; Alice of beta."""


def entry(token: str, subject: str) -> dict[str, str]:
    """One token in tenants.toml."""
    return {"hash": f"sha256:{hashlib.sha256(token.encode()).hexdigest()}", "subject": subject}


def tenants(*tokens: str) -> str:
    """The text of tenants.toml with these tokens and no others."""
    known = {ACME: ("acme", "alice"), SERVER: ("acme", "*"), BETA: ("beta", "alice")}
    lines = []
    for tenant in ("acme", "beta"):
        own = [entry(token, known[token][1]) for token in tokens if known[token][0] == tenant]
        items = ", ".join("{" + ", ".join(f'{key} = "{value}"' for key, value in one.items()) + "}" for one in own)
        lines.append(f"[tenants.{tenant}]\ntokens = [{items}]\n")
    return "\n".join(lines)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the broker's files are."""
    return tmp_path_factory.mktemp("auth")


@pytest.fixture(scope="module")
def broker(folder: Path, oracle: Oracle) -> Iterator[Broker]:
    """A broker with two tenants."""
    oracle.canaries |= {ACME, SERVER, BETA}
    (folder / "tenants.toml").write_text(tenants(ACME, SERVER, BETA))
    config = {
        "auth": {"mode": "tokens", "file": "tenants.toml"},
        "pool": {"isolation": "none", "profiles": {"default": {"warm": 3}}},
        "session": {"detach_timeout_s": 2},
    }
    with started_broker(folder, config) as found:
        oracle.allow(pid=found.pid)
        yield found


@pytest.fixture(autouse=True)
def _same_tenants(broker: Broker, folder: Path) -> Iterator[None]:
    """What a test did to the file is undone, and noticed."""
    yield
    if (folder / "tenants.toml").read_text() != tenants(ACME, SERVER, BETA):
        before = len(broker.log_events("auth.tenants_loaded"))
        replace_tenants(folder, tenants(ACME, SERVER, BETA))
        eventually_sync(lambda: len(broker.log_events("auth.tenants_loaded")) > before, REVOKED_WITHIN_S)


def replace_tenants(folder: Path, text: str) -> None:
    """Rename a new file over the old one."""
    part = folder / "tenants.part"
    part.write_text(text)
    part.replace(folder / "tenants.toml")


def bearer(token: str) -> dict[str, str]:
    """The header that carries a token."""
    return {"Authorization": f"Bearer {token}"}


def in_subprotocol(token: str) -> tuple[str, str]:
    """The subprotocols that carry a token."""
    return ("broker.v1", "broker.bearer." + base64.urlsafe_b64encode(token.encode()).decode().rstrip("="))


def opening(
    session_id: str, token: str | None = None, subject: str | None = None, mode: str = "open"
) -> dict[str, Any]:
    """Hello's fields."""
    auth = {key: value for key, value in (("token", token), ("subject", subject)) if value is not None}
    return {"session": {"mode": mode, "id": session_id}} | ({"auth": auth} if auth else {})


async def status(broker: Broker, **where: Any) -> int:
    """The HTTP status with which a handshake is refused; 101 when it is not."""
    try:
        async with connected(broker.url, **where):
            return 101
    except InvalidStatus as error:
        response = error.response
    assert not any(token.encode() in (response.body or b"") for token in (ACME, SERVER, BETA))
    return response.status_code


async def close_code(broker: Broker, hello: dict[str, Any], **where: Any) -> int:
    """The code with which a hello is refused; 0 when it is welcome."""
    async with connected(broker.url, **where) as client:
        try:
            await client.hello(**hello)
        except ConnectionClosed as closed:
            assert all(token not in text for token in (ACME, SERVER, BETA) for text in client.texts)
            return closed.rcvd.code if closed.rcvd else 1006
        return 0


# -- where a token may stand -----------------------------------------------------------------------------------------


async def test_a_token_is_taken_from_three_places(broker: Broker) -> None:
    """The header, the subprotocol and hello carry it alike; the subprotocol that is answered is broker.v1 alone."""
    async with connected(broker.url, headers=bearer(ACME), hello=opening("three")) as client:
        epoch = client.welcome["epoch"]
    async with connected(broker.url, subprotocols=in_subprotocol(ACME), hello=opening("three")) as client:
        assert client.welcome["epoch"] == epoch
        assert client.socket.subprotocol == "broker.v1"
    async with connected(broker.url, hello=opening("three", ACME)) as client:
        assert client.welcome["epoch"] == epoch
        assert ACME not in "".join(client.texts)


async def test_no_token_is_told_in_hello(broker: Broker) -> None:
    """Without a token the upgrade works, because hello may bring one; when it does not, 4501."""
    assert await status(broker) == 101
    assert await close_code(broker, {}) == 4501
    assert await close_code(broker, {"auth": {"subject": "alice"}}) == 4501


BAD_HEADERS = ["", "Bearer", "Bearer ", f"Basic {ACME}", f"Bearer {ACME} more", f"Bearer {ACME}x", "Bearer x,y",
               f"Bearer  {BETA[:-1]}", f"Token {ACME}", f'Bearer "{ACME}"', "Bearer " + "a" * 5000]  # fmt: skip


@pytest.mark.parametrize("value", BAD_HEADERS, ids=range(len(BAD_HEADERS)))
async def test_a_bad_header_is_refused_before_the_upgrade(broker: Broker, value: str) -> None:
    """What is present and not valid is never skipped, though a good token stands elsewhere: 401, and no other word."""
    assert await status(broker, headers={"Authorization": value}) == 401
    good_too = in_subprotocol(ACME)
    assert await status(broker, headers={"Authorization": value}, subprotocols=good_too) == 401


@pytest.mark.parametrize(
    "offered",
    [("broker.v1", "broker.bearer."), ("broker.v1", "broker.bearer"), ("broker.v1", "broker.bearer.!!!"),
     ("broker.v1", in_subprotocol("wrong")[1]), (*in_subprotocol(ACME), in_subprotocol(BETA)[1]),
     ("broker.v1", "Broker.Bearer.eA"), ("broker.v1", in_subprotocol(ACME)[1] + "=")],
)  # fmt: skip
async def test_a_bad_subprotocol_is_refused_before_the_upgrade(broker: Broker, offered: tuple[str, ...]) -> None:
    """An entry that is meant as a token and is none is 401, also beside a second, good one."""
    assert await status(broker, subprotocols=(), headers={"Sec-WebSocket-Protocol": ", ".join(offered)}) == 401


async def test_a_bad_token_in_hello_is_refused(broker: Broker) -> None:
    """4501 for a wrong, a nearly right and another's hash; one that the handshake accepted wins over hello's."""
    for token in ("wrong", ACME[:-1], ACME + "x", ACME.upper(), entry(ACME, "alice")["hash"]):
        assert await close_code(broker, opening("bad", token)) == 4501
    assert await close_code(broker, opening("bad", "wrong"), headers=bearer(ACME)) == 0


async def test_header_wins_over_subprotocol(broker: Broker) -> None:
    """The token of the header says who it is when both are valid."""
    async with connected(broker.url, hello=opening("wins", ACME)):
        both = {"headers": bearer(ACME), "subprotocols": in_subprotocol(BETA)}
        assert await close_code(broker, opening("wins", mode="resume"), **both) == 0
        assert await close_code(broker, opening("wins", mode="resume"), headers=bearer(BETA)) == 4504


# -- whose session it is ---------------------------------------------------------------------------------------------


async def test_unknown_and_foreign_sessions_look_alike(broker: Broker) -> None:
    """Another tenant's session, by its id or its CLI's, is as unknown as one that never was: 4504, byte for byte."""
    async with connected(broker.url, hello=opening("secret-1", ACME)) as mine:
        cli_id = mine.welcome["cli"]["session_id"]
        answers = set()
        for session_id in ("secret-1", cli_id, "never-was"):
            async with connected(broker.url) as client:
                await client.send({"type": "broker.hello", **opening(session_id, BETA, mode="resume")})
                with pytest.raises(ConnectionClosed) as caught:
                    await client.receive()
                answers.add((caught.value.rcvd.code, caught.value.rcvd.reason) if caught.value.rcvd else None)
        assert answers == {(4504, "unknown_session")}
        assert await close_code(broker, opening(cli_id, ACME, mode="resume")) == 0


async def test_one_id_of_two_tenants_is_two_sessions(broker: Broker) -> None:
    """Both may be new, and neither sees a frame of the other."""
    async with connected(broker.url, hello=opening("same", ACME, mode="new")) as one:
        async with connected(broker.url, hello=opening("same", BETA, mode="new")) as two:
            assert one.welcome["epoch"] != two.welcome["epoch"]
            assert one.welcome["cli"]["session_id"] != two.welcome["cli"]["session_id"]
            await one.turn("of acme", "m-1")
            await two.turn("of beta", "m-1")
            assert "of acme" not in "".join(two.texts)
            assert "of beta" not in "".join(one.texts)


async def test_subjects_of_a_tenant_are_apart(broker: Broker) -> None:
    """A token for * speaks for whom hello names; a token of one subject for nobody else (4503)."""
    async with connected(broker.url, hello=opening("mine", ACME)) as alice:
        async with connected(broker.url, hello=opening("mine", SERVER, "alice")) as for_alice:
            assert for_alice.welcome["epoch"] == alice.welcome["epoch"]
        for subject in ("bob", None):
            assert await close_code(broker, opening("mine", SERVER, subject, mode="resume")) == 4504
        assert await close_code(broker, opening("mine", ACME, "alice", mode="resume")) == 0
        for subject in ("bob", "ALICE"):
            assert await close_code(broker, opening("mine", ACME, subject, mode="resume")) == 4503


# -- revocation ------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def everybody(broker: Broker) -> AsyncIterator[tuple[Client, Client, Client]]:
    """Alice of acme, acme's server and Alice of beta, each in a session of their own."""
    async with (
        connected(broker.url, headers=bearer(ACME), hello=opening("r")) as alice,
        connected(broker.url, hello=opening("r", SERVER, "carol")) as server,
        connected(broker.url, subprotocols=in_subprotocol(BETA), hello=opening("r")) as beta,
    ):
        yield alice, server, beta


async def test_a_revoked_token_ends_its_sockets_alone(broker: Broker, folder: Path) -> None:
    """Within five seconds after the file was replaced: 4508 for whom it named, in mid-turn too; the others talk on."""
    async with everybody(broker) as (alice, server, beta):
        await alice.say("[[sim tokens=300 itl_ms=10]] long")
        await alice.until_type("stream_event")
        replace_tenants(folder, tenants(SERVER, BETA))
        assert await alice.closed(REVOKED_WITHIN_S) == 4508
        for other in (server, beta):
            assert (await other.turn("still here"))["type"] == "broker.turn_completed"
        assert await status(broker, headers=bearer(ACME)) == 401
        assert await close_code(broker, opening("r", ACME)) == 4501


async def test_a_token_of_somebody_else_is_revoked(broker: Broker, folder: Path) -> None:
    """A token that now stands for another subject ends the sockets of the old one."""
    async with everybody(broker) as (alice, server, _):
        replace_tenants(folder, tenants(ACME, SERVER, BETA).replace('"alice"', '"bob"', 1))
        assert await alice.closed(REVOKED_WITHIN_S) == 4508
        await server.sync()
        assert await close_code(broker, opening("r", ACME, mode="resume")) == 4504  # bob has no such session


async def test_a_socket_before_hello_is_revoked_too(broker: Broker, folder: Path) -> None:
    """A token that was taken at the handshake and revoked before hello does not get in."""
    async with connected(broker.url, headers=bearer(ACME)) as early:
        replace_tenants(folder, tenants(SERVER, BETA))
        assert await early.closed(REVOKED_WITHIN_S) == 4508


async def test_a_broken_file_revokes_nobody(broker: Broker, folder: Path) -> None:
    """The last good file holds; the mistake is logged with its key, and no hash with it."""
    async with everybody(broker) as (alice, _, _):
        replace_tenants(folder, '[tenants.acme]\ntokens = [{hash = "sha256:xyz"}]\n')
        await eventually(lambda: broker.log_events("auth.tenants_rejected"), REVOKED_WITHIN_S)
        assert broker.log_events("auth.tenants_rejected")[-1]["key"].startswith("tenants.acme.tokens")
        await alice.sync()
        assert await status(broker, headers=bearer(ACME)) == 101


async def test_the_last_token_goes_and_nothing_stays(broker: Broker, folder: Path) -> None:
    """When all are revoked no connection is left in the count, and no token is in the log of all this."""
    async with asyncio.timeout(20), everybody(broker) as (alice, server, beta):
        replace_tenants(folder, tenants())
        assert [await client.closed(REVOKED_WITHIN_S) for client in (alice, server, beta)] == [4508] * 3
    await eventually(lambda: broker.metric("broker_connections") == 0)
    log = broker.log_text()
    assert not any(token in log for token in (ACME, SERVER, BETA))
