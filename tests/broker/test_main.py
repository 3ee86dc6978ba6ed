"""The command ``broker``: exit codes, what each command prints, and the terminal client against a scripted broker."""

import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import msgspec
import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request, Response

from broker import __main__ as command
from broker import __version__
from broker.__main__ import HEALTH_URL, main, wants_uvloop
from broker.auth import Authenticator
from broker.chat.terminal import full_url
from broker.config.settings import Settings
from broker.config.tree import Config, load
from broker.errors import CliMissing, ConfigError
from broker.sockets.http import refusal

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 20.0


async def broker(*arguments: str, stdin: bytes = b"", **environ: str) -> tuple[int, str, str]:
    """Run ``python -m broker`` to its end."""
    with anyio.fail_after(DEADLINE_S):
        done = await anyio.run_process(
            [sys.executable, "-m", "broker", *arguments], input=stdin, check=False, env=os.environ | environ, cwd=ROOT
        )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


# -- small commands --------------------------------------------------------------------------------------------------


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """``broker version`` prints one line."""
    assert main(["version"]) == 0
    assert capsys.readouterr().out == f"broker {__version__}\n"


async def test_small_commands_load_nothing_of_the_server() -> None:
    """Starting stays quick: version and a failing healthcheck import no third package."""
    code = (
        "import sys; from broker.__main__ import main; main(['version']); main(['healthcheck', 'http://127.0.0.1:1']); "
        "print({'websockets', 'structlog', 'prometheus_client', 'msgspec', 'anyio'} & set(sys.modules))"
    )
    done = await anyio.run_process([sys.executable, "-c", code], cwd=ROOT)
    assert done.stdout.decode().splitlines()[-1] == "set()"


@pytest.mark.parametrize("arguments", [[], ["unknown"], ["serve", "--log-level", "trace"], ["check-config"]])
def test_a_mistake_in_the_arguments(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """argparse tells the usage and exits 2."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: broker" in capsys.readouterr().err


def test_the_schema_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """``broker config-schema`` prints a JSON Schema."""
    assert main(["config-schema"]) == 0
    assert msgspec.json.decode(capsys.readouterr().out)["$ref"] == "#/$defs/Config"


def test_a_good_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``broker check-config`` says ok and exits 0."""
    path = tmp_path / "broker.toml"
    path.write_text("[pool]\nmax_processes = 8\n")
    assert main(["check-config", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}: ok\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[pool]\nmax_processes = 0\n", "pool.max_processes"),
        ('[auth]\nmode = "tokens"\n[pool]\nisolation = "none"\n', "tenants.toml"),
        ("[pool\n", "broker.toml"),
    ],
)
async def test_a_bad_configuration(tmp_path: Path, text: str, says: str) -> None:
    """check-config and serve exit 78, name the key or the file, and serve opens no port."""
    path, ports = tmp_path / "broker.toml", tmp_path / "ports"
    path.write_text(text)
    for arguments in (
        ["check-config", str(path)],
        ["serve", "--config", str(path), "--cli", "simulated", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0",
         "--port-file", str(ports)],
    ):  # fmt: skip
        code, out, err = await broker(*arguments)
        assert (code, out) == (78, "")
        assert says in err
        assert "Traceback" not in err
    assert not ports.exists()


async def test_a_bad_variable(tmp_path: Path) -> None:
    """A variable is checked like the file, and named."""
    code, _, err = await broker("serve", BROKER__POOL__MAX_PROCESSES="many")
    assert code == 78
    assert "BROKER__POOL__MAX_PROCESSES" in err


async def test_no_cli(tmp_path: Path) -> None:
    """A CLI that is not there is exit 69 with what to do, and no port is opened."""
    ports = tmp_path / "ports"
    code, _, err = await broker(
        "serve", "--cli", str(tmp_path / "claude"), "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0",
        "--port-file", str(ports), BROKER__STATE__DIR=str(tmp_path / "var"),
    )  # fmt: skip
    assert code == 69
    assert "claude" in err
    assert not ports.exists()


def test_a_token_that_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``broker token NAME`` prints a token and the lines that let it in."""
    assert main(["token", "acme"]) == 0
    out = capsys.readouterr().out
    token, lines = out.splitlines()[1], out.partition("for tenants.toml:\n")[2]
    (tmp_path / "tenants.toml").write_text(lines)
    (tmp_path / "broker.toml").write_text('auth.mode = "tokens"\npool.isolation = "none"\n')
    assert main(["check-config", str(tmp_path / "broker.toml")]) == 0
    assert Authenticator(Settings(load(tmp_path / "broker.toml", {}, {}))).authenticate(token).tenant == "acme"
    assert main(["token", "no/name"]) == 78


# -- failures to exit codes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("a.b", "is wrong"), 78),
        (CliMissing("no claude on PATH"), 69),
        (ExceptionGroup("tasks", [ExceptionGroup("more", [ConfigError("a.b", "is wrong")])]), 78),
        (ExceptionGroup("tasks", [CliMissing("gone")]), 69),
        (OSError(98, "Address already in use"), 1),
        (KeyboardInterrupt(), 0),
    ],
)
def test_failures_become_exit_codes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, code: int
) -> None:
    """The operator's mistakes have their codes, also inside exception groups, and are told in one line."""

    def fails(_arguments: object) -> int:
        raise error

    monkeypatch.setattr(command, "version", fails)
    assert main(["version"]) == code
    assert capsys.readouterr().err.count("\n") == (0 if code == 0 else 1)


@pytest.mark.parametrize(
    "error", [ExceptionGroup("tasks", [ConfigError("a", "b"), ValueError()]), ValueError(), OSError(5, "I/O error")]
)
def test_bugs_are_not_hidden(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Everything else goes up with its traceback, which exits 1."""

    def fails(_arguments: object) -> int:
        raise error

    monkeypatch.setattr(command, "version", fails)
    with pytest.raises(type(error)):
        main(["version"])


def test_the_loop_follows_the_configuration() -> None:
    """asyncio when asked for; auto takes uvloop where it is installed."""
    installed = wants_uvloop(Config())
    assert wants_uvloop(load(None, {}, {"server.loop": "asyncio"})) is False
    if installed:
        assert wants_uvloop(load(None, {}, {"server.loop": "uvloop"}))
    else:
        with pytest.raises(ConfigError, match=r"server\.loop"):
            wants_uvloop(load(None, {}, {"server.loop": "uvloop"}))


# -- healthcheck -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1), (404, 1)])
async def test_healthcheck_follows_the_status(status: int, code: int) -> None:
    """Exit 0 for 200 and nothing else."""

    async def never(_socket: ServerConnection) -> None:
        raise AssertionError

    def answer(_connection: ServerConnection, request: Request) -> Response:
        return refusal(status if request.path == "/readyz" else 404, "answer")

    async with serve(never, "127.0.0.1", 0, process_request=answer) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        got, out, _ = await broker("healthcheck", f"http://127.0.0.1:{port}/readyz")
    assert got == code
    assert out.startswith(str(status))


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1/readyz", "https://127.0.0.1/", "nonsense", "http://[::1", "http://h:x"]
)
def test_healthcheck_without_an_answer(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody there, or an address that is none: exit 1, in words."""
    assert main(["healthcheck", url]) == 1
    assert url in capsys.readouterr().err
    assert HEALTH_URL.endswith("/readyz")


# -- the terminal client ---------------------------------------------------------------------------------------------

WELCOME = {
    "type": "broker.welcome", "session_id": "s-1", "epoch": "e1", "head_seq": 0, "replay": None, "lost": None,
    "start": "warm", "ready_ms": 3.0, "queued": [], "pending": [], "turn": None,
}  # fmt: skip


class Peer:
    """One connection of the client, as the scripted broker sees it."""

    def __init__(self, connection: ServerConnection, hello: dict[str, Any]) -> None:
        self.connection = connection
        self.hello = hello

    async def send(self, *frames: dict[str, Any]) -> None:
        for frame in frames:
            await self.connection.send(msgspec.json.encode(frame), text=True)

    async def receive(self) -> dict[str, Any]:
        frame: dict[str, Any] = msgspec.json.decode(await self.connection.recv())
        return frame

    async def accept(self) -> str:
        """Take a message and accept it; returns its id."""
        message = await self.receive()
        await self.send({"type": "broker.accepted", "id": message["id"], "queued": 0, "outcome": None})
        return str(message["id"])


def delta(text: str, seq: int) -> dict[str, Any]:
    event = {"type": "content_block_delta", "delta": {"type": "text_delta", "text": text}}
    return {"type": "stream_event", "event": event, "parent_tool_use_id": None, "seq": seq}


def completed(message_id: str, seq: int, **more: Any) -> dict[str, Any]:
    return {
        "type": "broker.turn_completed", "id": message_id, "error": None, "stopped": False, "ttft_ms": 212.4,
        "duration_ms": 900.0, "seq": seq, **more,
    }  # fmt: skip


Script = Callable[[Peer], Awaitable[None]]


@asynccontextmanager
async def scripted(*scripts: Script) -> AsyncIterator[tuple[str, list[Peer]]]:
    """A broker whose n-th connection follows the n-th script."""
    peers: list[Peer] = []

    async def converse(connection: ServerConnection) -> None:
        hello = msgspec.json.decode(await connection.recv())
        peer = Peer(connection, hello)
        peers.append(peer)
        await scripts[len(peers) - 1](peer)
        await connection.wait_closed()

    async with serve(converse, "127.0.0.1", 0, compression=None) as server:
        yield f"127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}", peers


async def test_a_line_is_a_message_and_its_answer_is_printed() -> None:
    """Text goes to stdout as it comes, the figures to stderr, and the end of input ends the program."""

    async def script(peer: Peer) -> None:
        await peer.send(WELCOME)
        for number, text in enumerate(("one\x1b[31m", "two")):
            message_id = await peer.accept()
            await peer.send(delta(text, 2 * number + 1), completed(message_id, 2 * number + 2))

    async with scripted(script) as (url, (*_,)):
        code, out, err = await broker(
            "chat", url, "--token", "t", "--session", "c-1", "--model", "opus", "--system-prompt", "p",
            stdin=b"first\n\nsecond",
        )  # fmt: skip
    assert (code, out) == (0, "one[31m\ntwo\n")
    assert err.count("warm · first token 212 ms") == 2


async def test_what_hello_carries() -> None:
    """Token, session, options and credential travel where they belong."""
    seen: list[Peer] = []

    async def script(peer: Peer) -> None:
        seen.append(peer)
        await peer.send(WELCOME)

    async with scripted(script) as (url, _):
        code, _, _ = await broker(
            "chat", f"http://{url}/", "--session", "c-1", "--model", "opus", "--credential-from", "ANTHROPIC_API_KEY",
            BROKER_TOKEN="secret", ANTHROPIC_API_KEY="sk-1",
        )  # fmt: skip
    (peer,) = seen
    assert code == 0
    assert peer.connection.request is not None
    assert peer.connection.request.path == "/v1/chat/ws"
    assert peer.connection.request.headers["Authorization"] == "Bearer secret"
    assert peer.hello["session"] == {"mode": "open", "id": "c-1"}
    assert peer.hello["options"] == {"model": "opus", "credentials": {"api_key": "sk-1"}}


async def test_a_cut_connection_is_resumed() -> None:
    """After a cut it comes back by session, epoch and last seq; a message that was not accepted is sent again."""
    ids: list[str] = []

    async def first(peer: Peer) -> None:
        await peer.send(WELCOME)
        ids.append(await peer.accept())
        await peer.send(delta("one ", 1), delta("two ", 2))
        ids.append((await peer.receive())["id"])
        peer.connection.transport.abort()

    async def second(peer: Peer) -> None:
        await peer.send(WELCOME | {"head_seq": 3, "replay": {"from": 2, "to": 3}, "start": "attached"})
        await peer.send(delta("two ", 2), delta("three", 3), completed(ids[0], 4))
        again = await peer.accept()
        assert again == ids[1]
        await peer.send(delta("four", 5), completed(again, 6))

    async with scripted(first, second) as (url, peers):
        code, out, err = await broker("chat", url, stdin=b"hello\nmore\n")
    assert (code, out) == (0, "one two three\nfour\n")
    assert peers[1].hello["session"] == {"mode": "resume", "id": "s-1", "epoch": "e1", "last_seq": 2}
    assert peers[0].hello["client"]["instance"] == peers[1].hello["client"]["instance"]
    assert "not connected" in err


async def test_a_new_epoch_is_read_from_its_start() -> None:
    """When the broker lost its log the new one is read from 1, the loss is told, and nobody waits for the old turn."""

    async def first(peer: Peer) -> None:
        await peer.send(WELCOME)
        await peer.accept()
        await peer.send(delta("half ", 1), delta("an answer", 2))
        await peer.connection.close(1012, "draining")

    async def second(peer: Peer) -> None:
        lost = {"from": 3, "to": None, "reason": "epoch_changed"}
        await peer.send(WELCOME | {"epoch": "e2", "head_seq": 1, "lost": lost, "replay": {"from": 1, "to": 1}})
        await peer.send({"type": "broker.turn_failed", "id": "x", "reason": "internal", "applied": "unknown",
                         "detail": None, "seq": 1})  # fmt: skip

    async with scripted(first, second) as (url, _):
        code, out, err = await broker("chat", url, stdin=b"hello\n")
    assert (code, out) == (0, "half an answer\n")
    assert "epoch_changed" in err
    assert "internal" in err


PROMPT = {
    "type": "control_request", "request_id": "r-1",
    "request": {"subtype": "can_use_tool", "tool_name": "Bash", "input": {"command": "ls"}}, "seq": 1,
}  # fmt: skip


@asynccontextmanager
async def typing(url: str) -> AsyncIterator[anyio.abc.Process]:
    """The client with a keyboard: what is written to its stdin arrives line by line."""
    with anyio.fail_after(DEADLINE_S):
        async with await anyio.open_process([sys.executable, "-m", "broker", "chat", url], cwd=ROOT) as process:
            yield process


async def typed(process: anyio.abc.Process, text: str) -> None:
    assert process.stdin is not None
    await process.stdin.send(text.encode())


async def told(stream: anyio.abc.ByteReceiveStream | None, text: str) -> str:
    """Read until ``text`` appears."""
    assert stream is not None
    seen = ""
    while text not in seen:
        seen += (await stream.receive()).decode()
    return seen


@pytest.mark.parametrize(("line", "behavior"), [("y\n", "allow"), ("no\n", "deny"), ("\n", "deny")])
async def test_a_permission_prompt_is_answered(line: str, behavior: str) -> None:
    """A prompt shows tool and input; y allows with the same input, everything else denies."""
    answers: list[dict[str, Any]] = []

    async def script(peer: Peer) -> None:
        await peer.send(WELCOME)
        message_id = await peer.accept()
        await peer.send(PROMPT)
        answers.append(await peer.receive())
        await peer.send(completed(message_id, 2))

    async with scripted(script) as (url, _), typing(url) as process:
        await typed(process, "run ls\n")
        assert '{"command":"ls"}' in await told(process.stderr, "allow?")
        await typed(process, line)
        await told(process.stderr, "first token")
        assert process.stdin is not None
        await process.stdin.aclose()
        assert await process.wait() == 0
    response = answers[0]["response"]
    assert (answers[0]["type"], response["request_id"]) == ("control_response", "r-1")
    assert response["response"]["behavior"] == behavior
    assert response["response"].get("updatedInput") == ({"command": "ls"} if behavior == "allow" else None)


async def test_a_prompt_after_the_input_is_denied() -> None:
    """Nobody is there to answer: the answer is no, and the turn goes on."""
    answers: list[dict[str, Any]] = []

    async def script(peer: Peer) -> None:
        await peer.send(WELCOME)
        message_id = await peer.accept()
        await anyio.wait_all_tasks_blocked()
        await peer.send(PROMPT)
        answers.append(await peer.receive())
        await peer.send(completed(message_id, 2))

    async with scripted(script) as (url, _):
        code, _, _ = await broker("chat", url, stdin=b"run ls")
    assert code == 0
    assert answers[0]["response"]["response"]["behavior"] == "deny"


async def test_ctrl_c_interrupts_and_then_ends() -> None:
    """The first Ctrl-C of a turn interrupts it; one while nothing runs ends the program with 0."""
    requests: list[dict[str, Any]] = []

    async def script(peer: Peer) -> None:
        await peer.send(WELCOME)
        message_id = await peer.accept()
        await peer.send(delta("going on", 1))
        requests.append(await peer.receive())
        await peer.send(completed(message_id, 2, stopped=True))

    async with scripted(script) as (url, _), typing(url) as process:
        await typed(process, "go on\n")
        await told(process.stdout, "going on")
        process.send_signal(signal.SIGINT)
        await told(process.stderr, "stopped")
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 0
    assert requests[0]["request"] == {"subtype": "interrupt", "cancel_queued": True}


@pytest.mark.parametrize(
    ("code", "exit_code"), [(1000, 0), (4501, 1), (4509, 1), (1007, 1)]
)  # fmt: skip
async def test_a_final_close_ends_the_program(code: int, exit_code: int) -> None:
    """Final codes are told and not tried again."""

    async def script(peer: Peer) -> None:
        await peer.send(WELCOME)
        await peer.connection.close(code, "because")

    async with scripted(script) as (url, peers), typing(url) as process:
        assert f"closed: {code} because" in await told(process.stderr, "closed")
        assert await process.wait() == exit_code
    assert len(peers) == 1


async def test_a_broker_that_refuses_or_is_none() -> None:
    """401, a closed port, a variable without a credential and a peer that is no broker are exit 1, in words."""

    def refuse(_connection: ServerConnection, _request: Request) -> Response:
        return refusal(401, "no")

    async def garbage(connection: ServerConnection) -> None:
        await connection.send("garbage")
        await connection.wait_closed()

    async with serve(garbage, "127.0.0.1", 0, process_request=refuse) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        code, _, err = await broker("chat", f"127.0.0.1:{port}")
        assert (code, err) == (1, "refused: HTTP 401\n")
    async with serve(garbage, "127.0.0.1", 0) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        async with typing(f"127.0.0.1:{port}") as process:
            await told(process.stderr, "what no broker sends")
            assert await process.wait() == 1
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        code, _, err = await broker("chat", f"127.0.0.1:{free.getsockname()[1]}")
    assert code == 1
    assert "cannot connect" in err
    code, _, err = await broker("chat", "--credential-from", "HOME")
    assert code == 1
    assert "ANTHROPIC_API_KEY" in err


@pytest.mark.parametrize(
    ("given", "full"),
    [("h:1", "ws://h:1/v1/chat/ws"), ("http://h/", "ws://h/v1/chat/ws"), ("https://h", "wss://h/v1/chat/ws"),
     ("ws://h/x?y=1", "ws://h/x?y=1"), ("ws://[::1]:2", "ws://[::1]:2/v1/chat/ws")],
)  # fmt: skip
def test_urls_are_completed(given: str, full: str) -> None:
    """A host, or the address of the chat page, is enough."""
    assert full_url(given) == full
