"""``broker chat`` against a broker: every kind of command, as a person would type it, with input from a pipe."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from tests.kit.broker import Broker, started_broker
from tests.oracle import Oracle

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 40.0


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory, oracle: Oracle) -> Iterator[Broker]:
    """A broker with the default policy."""
    with started_broker(tmp_path_factory.mktemp("chat"), {"session": {"detach_timeout_s": 30}}) as found:
        oracle.allow(pid=found.pid)
        yield found


async def chat(broker: Broker, *arguments: str, lines: list[str], **environ: str) -> tuple[int, str, str]:
    """Run the program to its end: exit code, the conversation, the notes."""
    command = [sys.executable, "-m", "broker", "chat", broker.url, *arguments]
    with anyio.fail_after(DEADLINE_S):
        done = await anyio.run_process(
            command, input="\n".join(lines).encode(), check=False, env=os.environ | environ, cwd=ROOT
        )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


async def test_a_conversation_is_left_taken_up_and_branched(broker: Broker) -> None:
    """By its id, as the latest one, as a branch, and read by an observer; the history is the same everywhere."""
    code, out, _ = await chat(broker, "--session", "kept", lines=["remember [[sim text=one]]"])
    assert (code, out) == (0, "one\n")
    for arguments in (("--session", "kept"), ("--continue",), ("--fork", "kept"), ("--observe", "kept")):
        code, _, notes = await chat(broker, *arguments, lines=["/history 2"])
        assert code == 0
        assert "user: remember [[sim text=one]]\nassistant: one" in notes, arguments


async def test_what_is_changed_live_is_told(broker: Broker, tmp_path: Path) -> None:
    """Model, mode, settings, credentials, MCP servers; and a refusal is told by its setting."""
    (tmp_path / "settings.json").write_text('{"effortLevel":"low"}')
    lines = [
        "/model opus", "/mode plan", "/mode bypassPermissions", f"/settings @{tmp_path / 'settings.json'}",
        "/credential ANTHROPIC_API_KEY", "/mcp", "/nope", "//not a command [[sim tokens=1]]",
        "the last word: what is told behind a reply is told before its end [[sim tokens=1]]",
    ]  # fmt: skip
    code, _, notes = await chat(broker, lines=lines, ANTHROPIC_API_KEY="sk-chat")
    assert code == 0
    for told in (
        "model=opus", "permission_mode=plan", "(policy.permission_modes)", "settings=", "credentials=api_key",
        "no MCP servers", "no command /nope", "(policy.slash_commands)",
    ):  # fmt: skip
        assert told in notes, told
    assert "sk-chat" not in notes


async def test_pictures_prompts_and_the_end(broker: Broker, tmp_path: Path) -> None:
    """A picture with words, a tool that is allowed by a typed line, a conversation that is deleted."""
    picture, made = tmp_path / "a.png", tmp_path / "made"
    picture.write_bytes(b"\x89PNG\r\n")
    lines = [
        f"/image {picture} [[sim text=seen]]", f'[[sim tool="Bash:touch {made}" text=touched]]', "y", "/delete",
    ]  # fmt: skip
    code, out, notes = await chat(broker, "--session", "gone", lines=lines[:1])
    assert (code, out) == (0, "seen\n")
    async with await anyio.open_process(
        [sys.executable, "-m", "broker", "chat", broker.url, "--session", "gone"], cwd=ROOT
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        with anyio.fail_after(DEADLINE_S):
            await process.stdin.send(f"{lines[1]}\n".encode())
            notes = ""
            while "allow? [y/N]" not in notes:
                notes += (await process.stderr.receive()).decode()
            await process.stdin.send(b"y\n")
            while "first token" not in notes:
                notes += (await process.stderr.receive()).decode()
            await process.stdin.send(b"/delete\n")
            assert await process.wait() == 1
            notes += (await process.stderr.receive()).decode()
    assert made.exists()
    assert "closed: 4507" in notes
    code, _, notes = await chat(broker, "--observe", "gone", lines=[])
    assert (code, "4504" in notes) == (1, True)


async def test_without_a_process_there_is_no_figure(broker: Broker) -> None:
    """A lazy conversation is welcomed before it has a process."""
    code, out, notes = await chat(broker, "--option", "lazy=true", lines=["[[sim text=late]]"])
    assert (code, out) == (0, "late\n")
    assert "no process yet" in notes


async def test_any_option_of_hello(broker: Broker) -> None:
    """``--option`` takes JSON; a mistake in it is told before anything is connected, one in its value by its path."""
    code, out, _ = await chat(broker, "--option", "max_output_tokens=64", "--effort", "low", lines=["[[sim text=ok]]"])
    assert (code, out) == (0, "ok\n")
    code, _, notes = await chat(broker, "--option", "betas={", lines=[])
    assert (code, "--option betas" in notes) == (1, True)
    code, _, notes = await chat(broker, "--option", 'effort="huge"', lines=[])
    assert (code, "$.options.effort" in notes) == (1, True)
