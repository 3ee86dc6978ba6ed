"""continue and fork: the subject's latest conversation, and a branch that leaves its parent as it was."""

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from websockets.exceptions import ConnectionClosed

from tests.e2e.apart import apart
from tests.e2e.beside import no_bug
from tests.e2e.hook_scenes import guard, hooks, initialized, made, opening, touching
from tests.kit.broker import Broker, running_broker, started_broker
from tests.kit.client import Client, connected, contiguous, text_of
from tests.kit.host import Host
from tests.oracle import Oracle
from tests.waiting import eventually

ALICE, BOB, SERVER, OTHER = "brk_modes-alice", "brk_modes-bob", "brk_modes-server", "brk_other-alice"


def tenants() -> str:
    """Alice, Bob and a server of one tenant; another Alice of another."""
    known = {"modes": {ALICE: "alice", BOB: "bob", SERVER: "*"}, "other": {OTHER: "alice"}}
    text = ""
    for tenant, tokens in known.items():
        entries = ", ".join(
            f'{{hash = "sha256:{hashlib.sha256(token.encode()).hexdigest()}", subject = "{subject}"}}'
            for token, subject in tokens.items()
        )
        text += f"[tenants.{tenant}]\ntokens = [{entries}]\n"
    return text


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory, oracle: Oracle) -> Iterator[Broker]:
    """A broker with two tenants."""
    folder = tmp_path_factory.mktemp("modes")
    oracle.canaries |= {ALICE, BOB, SERVER, OTHER}
    (folder / "tenants.toml").write_text(tenants())
    config = {
        "auth": {"mode": "tokens", "file": "tenants.toml"},
        "pool": {"isolation": "none", "max_processes": 24, "profiles": {"default": {"warm": 3}}},
        "session": {"detach_timeout_s": 30},
    }
    with started_broker(folder, config) as found:
        oracle.allow(pid=found.pid)
        yield found


def hello(token: str, mode: str, session_id: str | None = None, subject: str | None = None, **others: Any) -> Any:
    """Hello's fields."""
    session = {"mode": mode} | ({"id": session_id} if session_id else {})
    auth = {"token": token} | ({"subject": subject} if subject else {})
    return {"auth": auth, "session": session, **others}


async def close_code(broker: Broker, fields: Any) -> int:
    """How the broker refuses this hello."""
    async with connected(broker.url) as client:
        with pytest.raises(ConnectionClosed):
            await client.hello(**fields)
        return await client.closed()


async def said(client: Client, text: str) -> str:
    """The answer to ``text``: the simulated CLI counts what the user said before."""
    before = len(client.frames)
    end = await client.turn(text)
    assert end["type"] == "broker.turn_completed"
    return text_of(client.frames[before:])


def remembers(answer: str) -> int:
    """How many earlier messages the CLI knew."""
    return int(answer.rpartition("Earlier messages of yours: ")[2].rstrip("."))


def told(broker: Broker) -> list[str]:
    """The lines that the CLIs were told, in order."""
    return [row["line"] for row in broker.ledger_rows("in") if "line" in row]


# -- continue --------------------------------------------------------------------------------------------------------


async def test_continue_is_the_subjects_latest(broker: Broker) -> None:
    """By last activity, not by age; it goes on where it was."""
    for name in ("first", "second"):
        async with connected(broker.url, hello=hello(ALICE, "new", f"c-{name}")) as client:
            await said(client, "hello")
    async with connected(broker.url, hello=hello(ALICE, "continue")) as client:
        assert client.welcome["session_id"] == "c-second"
    async with connected(broker.url, hello=hello(ALICE, "resume", "c-first")) as client:
        await said(client, "again")
    async with connected(broker.url, hello=hello(ALICE, "continue")) as client:
        assert (client.welcome["session_id"], client.welcome["start"]) == ("c-first", "attached")
        assert remembers(await said(client, "and now")) == 2


async def test_continue_never_shows_anothers(broker: Broker) -> None:
    """Another subject's or tenant's is as unknown as none at all: 4504."""
    async with connected(broker.url, hello=hello(SERVER, "new", "carol-1", "carol")) as client:
        await said(client, "hello")
    assert await close_code(broker, hello(BOB, "continue")) == 4504
    assert await close_code(broker, hello(OTHER, "continue")) == 4504
    assert await close_code(broker, hello(SERVER, "continue")) == 4504
    assert await close_code(broker, hello(SERVER, "continue", subject="dave")) == 4504
    async with connected(broker.url, hello=hello(SERVER, "continue", subject="carol")) as client:
        assert client.welcome["session_id"] == "carol-1"


async def test_continue_takes_no_id(broker: Broker) -> None:
    """An id beside it would be ignored: it is refused."""
    async with connected(broker.url) as client:
        with pytest.raises(ConnectionClosed):
            await client.hello(**hello(ALICE, "continue", "c-first"))
        assert await client.closed() == 4500
        assert [frame["code"] for frame in client.of_type("broker.error")] == ["bad_options"]


# -- fork ------------------------------------------------------------------------------------------------------------


def transcripts(broker: Broker) -> dict[str, bytes]:
    """Every transcript on disk, by session directory and file; one that is being wiped meanwhile is none."""
    found: dict[str, bytes] = {}
    for path in (broker.state / "sessions").glob("*/home/.claude/projects/*/*.jsonl"):
        with contextlib.suppress(FileNotFoundError):
            found[f"{path.parents[4].name}/{path.name}"] = path.read_bytes()
    return found


def folder_of(broker: Broker, client: Client) -> Path:
    """The directory of a conversation, by the working directory that its CLI tells."""
    init = next(frame for frame in client.frames if frame.get("subtype") == "init")
    return Path(init["cwd"]).parent


async def test_two_branches_diverge_and_the_parent_stays_as_it_was(broker: Broker) -> None:
    """A and B, forked at the same time from a live parent, know what it knew, and then each its own."""
    async with connected(broker.url, hello=hello(ALICE, "new", "parent")) as parent:
        for text in ("one", "two"):
            await said(parent, text)
        await parent.until(lambda frame: frame.get("subtype") == "session_state_changed")
        (folder_of(broker, parent) / "work" / "notes.txt").write_text("shared")
        before = {name: text for name, text in transcripts(broker).items() if folder_of(broker, parent).name in name}
        assert len(before) == 1
        seen = parent.last_seq
        branches: dict[str, Client] = {}

        async def branch(name: str, turns: int) -> None:
            async with connected(broker.url, hello=hello(ALICE, "fork", "parent")) as client:
                branches[name] = client
                assert client.welcome["start"] == "restored"
                assert client.welcome["head_seq"] == 0
                for number in range(turns):
                    assert remembers(await said(client, f"{name} {number}")) == 2 + number
                assert contiguous(client.numbered())
                assert not client.of_type("broker.state")
                assert (folder_of(broker, client) / "work" / "notes.txt").read_text() == "shared"

        async with anyio.create_task_group() as group:
            group.start_soon(branch, "a", 2)
            group.start_soon(branch, "b", 3)
        a, b = branches["a"], branches["b"]
        ids = {client.welcome["session_id"] for client in (parent, a, b)}
        own = {client.welcome["cli"]["session_id"] for client in (parent, a, b)}
        assert (len(ids), len(own)) == (3, 3)
        assert len({folder_of(broker, client) for client in (parent, a, b)}) == 3
        after = transcripts(broker)
        assert {name: after[name] for name in before} == before
        await parent.sync()
        assert parent.last_seq == seen
        assert remembers(await said(parent, "three")) == 2
    async with connected(broker.url, hello=hello(ALICE, "resume", a.welcome["session_id"])) as back:
        assert remembers(await said(back, "and on")) == 4
    assert no_bug(broker)


async def test_a_fork_of_a_running_turn_begins_with_what_was_said(broker: Broker) -> None:
    """The parent streams on; the branch has its finished turns and does not run the unfinished one."""
    async with connected(broker.url, hello=hello(ALICE, "new", "busy")) as parent:
        await said(parent, "one")
        await parent.say("[[sim tokens=400 itl_ms=10]] word", "m-long")
        while len(parent.of_type("stream_event")) < 60:
            await parent.receive()
        async with connected(broker.url, hello=hello(ALICE, "fork", "busy")) as child:
            assert child.welcome["turn"] is None
            assert remembers(await said(child, "mine")) in (1, 2)
            assert len([f for f in child.frames if f["type"] == "broker.turn_completed"]) == 1
        assert (await parent.terminal("m-long"))["type"] == "broker.turn_completed"
        assert contiguous(parent.numbered())


async def test_a_fork_of_the_latest_needs_no_id_and_a_stranger_has_nothing_to_fork(broker: Broker) -> None:
    """Without an id the subject's latest; unknown, foreign and none: 4504."""
    async with connected(broker.url, hello=hello(SERVER, "new", "erin-1", "erin")) as parent:
        await said(parent, "one")
        async with connected(broker.url, hello=hello(SERVER, "fork", subject="erin")) as child:
            assert child.welcome["session_id"] != "erin-1"
            assert remembers(await said(child, "two")) == 1
        cli_id = parent.welcome["cli"]["session_id"]
        async with connected(broker.url, hello=hello(SERVER, "fork", cli_id, "erin")) as child:
            assert remembers(await said(child, "two")) == 1
    strangers = ((BOB, None), (BOB, "erin-1"), (OTHER, "erin-1"), (SERVER, "erin-1"))
    for fields in (hello(token, "fork", session_id) for token, session_id in strangers):
        assert await close_code(broker, fields) == 4504


async def test_a_fork_of_a_conversation_without_words_starts_fresh(broker: Broker) -> None:
    """Nothing was said, nothing is copied: a new conversation, with the parent's options."""
    options = {"system_prompt": "You are a pirate.", "model": "opus"}
    async with connected(broker.url, hello=hello(ALICE, "new", "silent", options=options)):
        async with connected(broker.url, hello=hello(ALICE, "fork", "silent")) as child:
            assert child.welcome["start"] in ("warm", "cold")
            assert remembers(await said(child, "one")) == 0
            init = next(frame for frame in child.frames if frame.get("subtype") == "init")
            assert "opus" in init["model"]
    assert sum("You are a pirate." in line for line in told(broker)) == 2


async def test_a_fork_inherits_the_options_and_hello_wins(broker: Broker) -> None:
    """What the parent's process was told, the branch's is told too; what hello names is the branch's own."""
    options = {"system_prompt": "You are Ann.", "append_system_prompt": "Be brief.", "model": "opus"}
    async with connected(broker.url, hello=hello(ALICE, "new", "ann", options=options)) as parent:
        await said(parent, "one")
        assert (await parent.control("set_permission_mode", mode="plan"))["subtype"] == "success"
        before = len(told(broker))
        fields = hello(ALICE, "fork", "ann", options={"system_prompt": "You are Bea."})
        async with connected(broker.url, hello=fields) as child:
            assert child.welcome["options_ignored"] == []
            await said(child, "two")
            init = next(frame for frame in child.frames if frame.get("subtype") == "init")
            assert "opus" in init["model"]
            assert init["permissionMode"] == "plan"
    initialize = "".join(line for line in told(broker)[before:] if '"initialize"' in line)
    assert "You are Bea." in initialize
    assert "Be brief." in initialize
    assert "You are Ann." not in initialize
    assert '"systemPromptSnapshot":false' in initialize


async def test_the_guards_of_a_parent_guard_its_branches(tmp_path: Path) -> None:
    """Hooks are inherited with whose they are: their owner answers for the branch too, else the tool does not run."""
    config = {"policy": {"hooks": True}, "turn": {"permission_timeout_s": 2}}
    async with running_broker(tmp_path, config) as broker:
        async with connected(broker.url, hello=opening("guarded", "owner")) as parent:
            host = await initialized(parent, hooks=hooks(timeout=1))
            await host.turn("one", "m-1")
            for instance in ("owner", "stranger"):
                fields = {"session": {"mode": "fork", "id": "guarded"}, "client": {"instance": instance}}
                async with connected(broker.url, hello=fields) as child:
                    branch = Host(child, hook_callback=guard("deny"))
                    end = await branch.turn(touching(instance), "m-2")
                    assert end["type"] == "broker.turn_completed"
                    assert not made(broker, instance)
                    assert branch.events() == (["PreToolUse"] if instance == "owner" else [])
                    assert remembers(await said(child, "two")) == 2


async def test_a_branch_that_never_spoke_begins_with_its_parent_again(tmp_path: Path) -> None:
    """Hibernated before its first message, a fork is taken up from its parent's words once more."""
    async with running_broker(tmp_path, {"session": {"detach_timeout_s": 0.2}}) as broker:
        async with connected(broker.url, hello={"session": {"mode": "new", "id": "p"}}) as parent:
            await said(parent, "one")
            async with connected(broker.url, hello={"session": {"mode": "fork", "id": "p"}}) as child:
                own = child.welcome
            await broker.wait_pool(leased=1, stopping=0)
            back = {"session": {"mode": "resume", "id": own["session_id"]}}
            async with connected(broker.url, hello=back) as child:
                assert child.welcome["start"] == "restored"
                assert child.welcome["cli"]["session_id"] == own["cli"]["session_id"]
                assert remembers(await said(child, "two")) == 1
            await broker.wait_pool(leased=1, stopping=0)
            async with connected(broker.url, hello=back) as child:
                assert remembers(await said(child, "three")) == 2
                states = [f for f in child.frames if f["type"] == "broker.state"]
                assert all(f.get("reason") != "resume_lost" for f in states)


async def test_a_branch_of_a_branch(tmp_path: Path) -> None:
    """Each generation knows what was said before it."""
    async with running_broker(tmp_path, {}) as broker:
        fields: Any = {"session": {"mode": "new"}}
        for generation in range(3):
            async with connected(broker.url, hello=fields) as client:
                if generation == 1:  # forked again before it has a transcript of its own
                    fields = {"session": {"mode": "fork", "id": client.welcome["session_id"]}}
                    continue
                assert remembers(await said(client, f"word {generation}")) == (0 if generation == 0 else 1)
                fields = {"session": {"mode": "fork", "id": client.welcome["session_id"]}}


async def test_too_much_to_copy_is_refused_by_name(tmp_path: Path) -> None:
    """Above session.fork_max_mb: bind_failed, 4506, nothing left on disk, the parent goes on."""
    async with running_broker(tmp_path, {"session": {"fork_max_mb": 1}}) as broker:
        async with connected(broker.url, hello={"session": {"mode": "new", "id": "big"}}) as parent:
            await said(parent, "one")
            (folder_of(broker, parent) / "work" / "blob").write_bytes(bytes(2**20))
            folders = {path.name for path in (broker.state / "sessions").iterdir()}
            async with connected(broker.url) as child:
                with pytest.raises(ConnectionClosed):
                    await child.hello(session={"mode": "fork", "id": "big"})
                assert await child.closed() == 4506
                error = child.of_type("broker.error")[0]
                assert error["code"] == "bind_failed"
                assert "session.fork_max_mb = 1" in error["message"]
            assert {path.name for path in (broker.state / "sessions").iterdir()} <= folders
            assert remembers(await said(parent, "two")) == 1


async def test_a_branch_with_a_bad_option_leaves_nothing(tmp_path: Path) -> None:
    """A refused model ends the fork with 4506; its directory goes, the parent is untouched."""
    async with running_broker(tmp_path, {}) as broker:
        async with connected(broker.url, hello={"session": {"mode": "new", "id": "p"}}) as parent:
            await said(parent, "one")
            async with connected(broker.url) as child:
                with pytest.raises(ConnectionClosed):
                    await child.hello(session={"mode": "fork", "id": "p"}, options={"model": "claude-unknown-1"})
                assert await child.closed() == 4506
            await eventually(lambda: len(transcripts(broker)) == 1, 10)
            assert remembers(await said(parent, "two")) == 1


async def test_a_branch_may_use_its_parents_ids(tmp_path: Path) -> None:
    """Every message is heard and remembered, steered ones too, over a restore; its end knows it by its id."""
    config = {"session": {"detach_timeout_s": 0}}
    tool = '[[sim tool="Bash:sleep 0.3" tokens=2]]'
    opening = {"options": {"allowed_tools": ["Bash"]}}
    async with running_broker(tmp_path, config) as broker:
        async with connected(broker.url, hello={"session": {"mode": "new", "id": "p"}, **opening}) as parent:
            for number in range(3):
                await parent.turn(f"parent {number}", f"m-{number}")
            async with connected(broker.url, hello={"session": {"mode": "fork", "id": "p"}}) as child:
                branch = child.welcome["session_id"]
                await child.say(f"branch 0 {tool}", "m-0")
                await child.until(lambda frame: frame["type"] == "assistant")
                await child.send({"type": "user_message", "id": "m-1", "content": "branch 1", "steer": True})
                ends = [await child.terminal(f"m-{number}") for number in range(2)]
                assert [end["type"] for end in ends] == ["broker.turn_completed"] * 2
        await eventually(lambda: broker.pool()["leased"] == 0, 10)
        async with connected(broker.url, hello={"session": {"mode": "resume", "id": branch}}) as child:
            assert child.welcome["start"] == "restored"
            end = await child.turn("branch 2", "m-2")
            assert (end["type"], end["id"]) == ("broker.turn_completed", "m-2")
            assert remembers(text_of(child.frames)) == 5
            await child.send({"type": "broker.history"})
            page = await child.until_type("broker.history")
            shown = [f for f in page["frames"] if f["type"] == "user" and isinstance(f["message"]["content"], str)]
            assert [f["uuid"].partition("~")[0] for f in shown] == [*("m-0", "m-1", "m-2"), *("m-0", "m-1", "m-2")]
            assert len({f["uuid"] for f in shown}) == 6


@pytest.mark.parametrize("mode", ["uid", "userns"])
async def test_a_branch_is_a_user_of_its_own(mode: str) -> None:
    """Where sessions are kept apart, a fork works on its copy, its history is read, and a delete leaves nothing."""
    async with apart(mode) as broker, connected(broker.url, hello={"session": {"mode": "new", "id": "p"}}) as parent:
        await said(parent, "one")
        async with connected(broker.url, hello={"session": {"mode": "fork", "id": "p"}}) as child:
            assert remembers(await said(child, "two")) == 1
            if mode == "uid":
                assert folder_of(broker, child).stat().st_uid != folder_of(broker, parent).stat().st_uid
            for client in (parent, child):
                await client.send({"type": "broker.history"})
                page = await client.until_type("broker.history")
                assert page["frames"][0]["message"]["content"] == "one"
            folder = folder_of(broker, child)
            await child.send({"type": "broker.delete"})
            assert await child.closed() == 4507
            assert not folder.exists()
        assert remembers(await said(parent, "three")) == 1
