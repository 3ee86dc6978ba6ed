"""Secrets go where they are meant to go and nowhere else: a canary in every field, then a look into every corner."""

import base64
import hashlib
import json
import re
import uuid
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from tests.e2e.beside import welcomed
from tests.kit.broker import Broker, running_broker
from tests.kit.client import Client, connected
from tests.kit.raw import Cut, client_frame, raw_connection
from tests.oracle import Oracle
from tests.waiting import eventually

CLOSED_PORT = "http://127.0.0.1:9/"


class Canaries:
    """Makes canaries and remembers them by where they were put."""

    def __init__(self, oracle: Oracle) -> None:
        self._oracle = oracle
        self.made: dict[str, str] = {}
        self._own = uuid.uuid4().hex

    def __call__(self, place: str) -> str:
        """A text that stands nowhere else."""
        canary = f"canary{len(self.made):03}x{hashlib.sha256((self._own + place).encode()).hexdigest()[:16]}"
        self.made[place] = canary
        self._oracle.canaries.add(canary)
        return canary

    def seen_in(self, text: str) -> set[str]:
        """Those of them that stand in ``text``; another test that runs at the same time has its own."""
        return {canary for canary in self.made.values() if canary in text}


def corners(broker: Broker) -> Iterator[tuple[str, bytes]]:
    """Everything that may hold no secret, by name."""
    yield "log", broker.log.read_bytes()
    for page in ("/metrics", "/health", "/readyz"):
        yield page, broker.get(page, admin=True)[1]
    for pid in [broker.pid, *(process.pid for process in broker.descendants())]:
        with suppress(OSError):  # it has just ended
            yield f"cmdline of {pid}", Path(f"/proc/{pid}/cmdline").read_bytes()
    for path in sorted(broker.state.rglob("*")):
        is_transcript = path.suffix == ".jsonl" and "projects" in path.parts
        if not is_transcript:
            yield "state", path.name.encode()
            if path.is_file():
                yield f"state {path.relative_to(broker.state)}", path.read_bytes()


def found(broker: Broker, canaries: Iterable[tuple[str, str]]) -> list[str]:
    """Where which canary is."""
    canaries = list(canaries)
    lines = []
    for corner, content in corners(broker):
        for place, canary in canaries:
            forms = (canary, base64.urlsafe_b64encode(canary.encode()).decode().rstrip("="))
            if any(form.encode() in content for form in forms):
                lines.append(f"{place} is in {corner}")
    return lines


def configuration(folder: Path, token: str, new: Canaries) -> dict[str, Any]:
    """A broker for one tenant, whose operator has a secret too."""
    folder.mkdir(exist_ok=True)
    digest = hashlib.sha256(token.encode()).hexdigest()
    (folder / "tenants.toml").write_text(f'[tenants.acme]\ntokens = [{{hash = "sha256:{digest}"}}]\n')
    return {
        "auth": {"mode": "tokens", "file": "tenants.toml"},
        "cli": {"env": {"PROXY_PASSWORD": new("variable")}},
        "pool": {"isolation": "none", "mcp_bind_timeout_s": 1, "profiles": {"default": {"warm": 2}}},
        "policy": {"mcp_url_prefixes": [CLOSED_PORT], "base_urls": ["https://llm.test"]},
        "session": {"detach_timeout_s": 60},
    }


def options(new: Canaries, kind: str) -> dict[str, Any]:
    """Hello's options with a canary wherever a text may stand."""
    return {
        "credentials": {kind: new(kind), "base_url": "https://llm.test"},
        "system_prompt": f"You know {new(f'{kind} system prompt')}.",
        "append_system_prompt": new(f"{kind} appended prompt"),
        "agents": {"a": {"description": new(f"{kind} agent"), "prompt": new(f"{kind} agent prompt")}},
        "allowed_tools": [f"Bash({new(f'{kind} allowed')}:*)"],
        "disallowed_tools": [f"Read({new(f'{kind} disallowed')})"],
        "mcp_servers": {
            "m": {
                "type": "http",
                "url": CLOSED_PORT + new(f"{kind} url"),
                "headers": {"X-Key": new(f"{kind} header"), "Authorization": f"Bearer {new(f'{kind} bearer')}"},
            }
        },
    }


async def talk(client: Client, new: Canaries) -> None:
    """Every frame of a client, with canaries in it."""
    await client.turn(new("text"), "m-1")
    picture = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(new("image").encode()).decode()}
    await client.turn([{"type": "text", "text": new("block")}, {"type": "image", "source": picture}], "m-2")
    await client.send({"type": "user", "uuid": "m-3", "message": {"role": "user", "content": new("sdk text")},
                       "extra": new("dropped field")})  # fmt: skip
    await client.terminal("m-3")
    await client.say('[[sim tool="Bash:touch nothing"]] please', "m-4")
    prompt = (await client.prompt())["request_id"]
    await client.answer(prompt, behavior="maybe", message=new("bad answer"))
    await client.answer(prompt, behavior="deny", message=new("deny"))
    await client.terminal("m-4")
    await client.turn(f"[[sim error=529]] {new('failing text')}", "m-5")
    await client.say(f"[[sim tokens=20 itl_ms=1]] {new('running')}", "m-6")
    await client.say(new("queued"), "m-7")
    await client.say(new("other content"), "m-7")
    await client.terminal("m-7")
    await client.control("set_model", model=f"no-{new('model')}")
    await client.send({"type": new("type"), "x": new("unknown frame")})
    await client.ask("end_session", "c-x", reason=new("control"))
    await client.turn(f"[[sim tokens=5 die_after=2]] {new('text of a crash')}", "m-8")
    await client.sync()


def nonsense(new: Canaries) -> list[bytes]:
    """Frames that no decoder likes."""
    name = new("field name")
    return [
        json.dumps({"type": "user_message", "content": 7, name: new("field value")}).encode(),
        f'{{"type":"user_message","content":"{new("not json")}'.encode(),
        f'{{"type":"broker.ping","t":"{new("ping")}"}}'.encode(),
        f'{{"type":"user_message","content":"{new("bad utf-8")}'.encode() + b'\xff"}',
    ]


async def refused_hellos(broker: Broker, new: Canaries, token: str) -> None:
    """Hellos that get nowhere, each with a secret in it."""
    auth = {"token": token}
    hellos: list[dict[str, Any]] = [
        {"auth": {"token": new("wrong token")}},
        {"auth": auth, "options": {"credentials": {"api_key": new("first key"), "oauth_token": new("second key")}}},
        {"auth": auth, "options": {"credentials": {"api_key": f"{new('key with a blank')} b"}}},
        {"auth": auth, "options": {"credentials": {new("credential kind"): "a"}}},
        {"auth": auth, "options": {"credentials": {"api_key": new("key"), "base_url": f"https://{new('host')}.org"}}},
        {"auth": auth, "options": {"system_prompt": f"\0{new('bad prompt')}"}},
        {"auth": auth, "options": {"permission_mode": new("mode")}},
        {"auth": auth, "options": {"mcp_servers": {"m": {"type": "http", "url": f"http://127.0.0.1/{new('mcp')}"}}}},
        {"auth": auth, "client": {"name": new("client"), "version": new("version")}, "x": new("hello field")},
    ]
    for hello in hellos:
        async with connected(broker.url) as client:
            with pytest.raises(ConnectionClosed):
                await client.hello(**hello)
    for frame in nonsense(new):
        async with raw_connection(broker.port, f"/v1/chat/ws?key={new(f'query {len(new.made)}')}") as raw:
            await welcomed(raw, "raw", auth=auth)
            with suppress(Cut):
                await raw.send_raw(client_frame(frame))
                while (await raw.frame()).get("code") != "bad_frame":
                    pass


async def refused_handshakes(broker: Broker, new: Canaries) -> None:
    """Requests that are not upgraded."""
    wrong = base64.urlsafe_b64encode(new("subprotocol").encode()).decode().rstrip("=")
    for headers in (
        {"Authorization": f"Bearer {new('wrong bearer')}"},
        {"Authorization": new("malformed bearer"), "Cookie": new("cookie"), "User-Agent": new("agent")},
        {"Origin": f"http://{new('origin')}.example"},
        {"X-Long": new("long header") + "a" * 9000},
    ):
        with pytest.raises((InvalidHandshake, ConnectionClosed, OSError)):
            async with connected(broker.url, headers=headers):
                pass
    with pytest.raises(InvalidHandshake):
        async with connected(broker.url, subprotocols=("broker.v1", f"broker.bearer.{wrong}")):
            pass
    assert broker.get(f"/{new('path')}?{new('page query')}")[0] == 404
    assert broker.get("/", headers={"Host": new("host header")})[0] == 403


async def test_no_canary_leaves_its_way(tmp_path: Path, oracle: Oracle) -> None:
    """Tokens, credentials, prompts, headers, messages: in no log, metric, command line or file but transcripts, and
    prompts in the index."""
    new = Canaries(oracle)
    token = new("token")
    config = configuration(tmp_path / "broker", token, new)
    async with running_broker(tmp_path / "broker", config, log_level="debug") as broker:
        for kind in ("oauth_token", "api_key", "auth_token"):
            hello = {"session": {"mode": "open", "id": kind}, "client": {"instance": new(f"{kind} instance")},
                     "auth": {"token": token}, "options": options(new, kind)}  # fmt: skip
            async with connected(broker.url, hello=hello) as client:
                assert token not in "".join(client.texts)
                await talk(client, new)
                assert leaks(broker, new) == []
        await refused_hellos(broker, new, token)
        await refused_handshakes(broker, new)
        rows = broker.ledger.read_text()
        for place in ("oauth_token", "api_key system prompt", "auth_token header", "text"):
            assert new.made[place] in rows, f"{place} did not reach the CLI: the test proves nothing"
        assert leaks(broker, new) == []
    assert found_after(broker, new) == []
    assert len(new.made) > 60


def leaks(broker: Broker, new: Canaries) -> list[str]:
    """Where a canary is that should not be there: prompts are kept with the conversation."""
    lines = found(broker, new.made.items())
    return [line for line in lines if not re.search("(prompt|agent|allowed|disallowed) is in state index.db", line)]


def found_after(broker: Broker, new: Canaries) -> list[str]:
    """Canaries in the log of the end."""
    text = broker.log_text()
    return [place for place, canary in new.made.items() if canary in text]


async def test_the_look_finds_what_is_there(tmp_path: Path, oracle: Oracle) -> None:
    """The same look finds a text that is known to be in each corner, and a canary that is planted in three of them."""
    new = Canaries(oracle)
    async with running_broker(tmp_path, log_level="debug") as broker:
        known = {"in the log": "broker.listening", "in the metrics": "broker_build_info", "in argv": "simulator.cli"}
        corners_hit = "\n".join(found(broker, known.items()))
        for line in ("in the log is in log", "in the metrics is in /metrics", "in argv is in cmdline"):
            assert line in corners_hit
        planted = new("planted")
        oracle.canaries.discard(planted)  # it will be seen
        async with connected(broker.url, hello={}) as client:
            await client.say(f'[[sim tool="Bash:sleep 30; : {planted}"]] please')
            await client.answer((await client.prompt())["request_id"], behavior="allow")
            await eventually(lambda: any("cmdline" in line for line in found(broker, new.made.items())))
            (broker.state / "note").write_text(planted)
            assert "planted is in state note" in found(broker, new.made.items())
            with broker.log.open("a") as log:
                log.write(planted)
            assert "planted is in log" in found(broker, new.made.items())
            await client.control("interrupt")
            await client.terminal()
