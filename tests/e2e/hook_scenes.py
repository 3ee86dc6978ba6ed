"""What is true of hooks and of MCP servers in a client, whatever CLI is behind the broker.

Callers: ``test_hooks.py`` (the simulated CLI) and ``test_real_hooks.py`` (the real one).  Each scene is given a broker
with two spares, and the options that make a session there.
"""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from tests.e2e.processes import killed
from tests.kit.broker import Broker
from tests.kit.client import Client, Frame, connected
from tests.kit.host import Host
from tests.waiting import eventually

CALL = r"mcp__own__add:{\"a\": 4200, \"b\": 42}"
Scene = Callable[[Broker, Frame], Awaitable[None]]
LONG_S = 60.0
"""A turn of the real CLI on a busy machine."""


def opening(session: str, instance: str, **options: Any) -> Frame:
    """Hello's fields for a session that takes the client's initialize."""
    return {
        "session": {"mode": "open", "id": session},
        "client": {"instance": instance},
        "options": {"initialize": "client", **options},
    }


def hooks(timeout: float = 5, **more: Any) -> Frame:
    """A guard of Bash, and hooks that look on."""
    guard = {"matcher": "Bash", "hookCallbackIds": ["guard"], "timeout": timeout}
    return {"PreToolUse": [guard], "PostToolUse": [{"hookCallbackIds": ["after"]}], **more}


def touching(name: str) -> str:
    """A message whose turn wants to make a file."""
    return f'[[sim tool="Bash:touch {name}" tokens=3]] please'


def made(broker: Broker, name: str) -> list[Path]:
    """The files of that name in the sessions' working directories."""
    return list(broker.state.glob(f"sessions/*/work/{name}"))


def is_written(broker: Broker, text: str) -> bool:
    """Whether a transcript holds the text: without one there is nothing to resume."""
    return any(text in path.read_text() for path in broker.state.glob("sessions/*/home/.claude/projects/*/*.jsonl"))


def guard(decision: str, **more: Any) -> Any:
    """Answers a guard; other hooks say nothing."""

    def answer(request: Frame) -> Frame:
        if request["callback_id"] != "guard":
            return {}
        output = {"hookEventName": "PreToolUse", "permissionDecision": decision, **more}
        return {"hookSpecificOutput": output}

    return answer


def always(response: Any) -> Any:
    """The same answer to everything."""
    return lambda request: response


async def initialized(client: Client, **fields: Any) -> Host:
    """A host whose initialize was answered."""
    host = Host(client)
    reply = await host.control("initialize", "init-1", **fields)
    assert reply["subtype"] == "success", reply
    assert "commands" in reply["response"]
    assert "pid" not in reply["response"]
    return host


async def the_owner_is_asked_and_obeyed(broker: Broker, options: Frame) -> None:
    """Its hooks decide; a second client neither sees them nor can answer them."""
    hello = opening("obeyed", "owner", **options)
    async with (
        connected(broker.url, hello=hello) as owner,
        connected(broker.url, hello=opening("obeyed", "other")) as other,
    ):
        host = await initialized(owner, hooks=hooks())
        host.answers["hook_callback"] = guard("deny", permissionDecisionReason="not today")
        end = await host.turn(touching("denied"), "m-1", LONG_S)
        assert not end["is_error"], end
        assert not made(broker, "denied")
        assert host.events() == ["PreToolUse"]
        assert not host.requests("can_use_tool")
        host.answers["hook_callback"] = guard("allow", updatedInput={"command": "touch replaced"})
        end = await host.turn(touching("allowed"), "m-2", LONG_S)
        assert end["type"] == "broker.turn_completed", end
        assert made(broker, "replaced"), tool_results(owner)
        assert not made(broker, "allowed")
        assert host.events() == ["PreToolUse", "PreToolUse", "PostToolUse"]
        assert not host.requests("can_use_tool")
        await other.terminal("m-2", LONG_S)
        assert not other.of_type("control_request")
        assert not [frame for frame in owner.of_type("control_request") if "seq" in frame]
        await other.answer("unknown", behavior="allow")
        assert (await other.error())["code"] == "unknown_request"


async def a_guard_never_fails_open(broker: Broker, options: Frame) -> None:
    """An error, rubbish, a stop, silence: the tool does not run, and the turn comes to its end."""
    async with connected(broker.url, hello=opening("closed", "owner", **options)) as owner:
        host = await initialized(owner, hooks=hooks(timeout=1))
        failures: dict[str, Any] = {
            "error": RuntimeError("broken"),
            "rubbish": {"hookSpecificOutput": {"hookEventName": "PreToolUse", "permissionDecision": "perhaps"}},
            "later": {"async": True},
            "stop": {"continue": False, "stopReason": "enough"},
            "silence": None,
        }
        for name, response in failures.items():
            host.answers["hook_callback"] = always(response)
            end = await host.turn(touching(name), name, LONG_S)
            assert end["type"] == "broker.turn_completed", (name, end)
            assert not made(broker, name), name
            assert not host.requests("can_use_tool"), name
        assert [frame["code"] for frame in owner.of_type("broker.error")] == ["bad_frame", "bad_frame"]
        assert len(owner.of_type("control_cancel_request")) == 1, "of the one that was silent"


async def an_owner_that_is_away_blocks_until_it_is_back(broker: Broker, options: Frame) -> None:
    """Nobody else may let the tool run; who comes back in time finds the question in its welcome."""
    hello = opening("away", "owner", **options)
    async with connected(broker.url, hello=opening("away", "other", **options)) as other:
        async with connected(broker.url, hello=hello) as owner:
            await initialized(owner, hooks=hooks(timeout=2))
        end = await other.turn(touching("unattended"), "m-1", LONG_S)
        assert end["type"] == "broker.turn_completed"
        assert not made(broker, "unattended")
    async with connected(broker.url, hello=hello) as owner:
        again = await Host(owner).control("initialize", "init-2", hooks=hooks(timeout=2))
        assert again["subtype"] == "success", "the same from the cache"
    async with connected(broker.url, hello=opening("away2", "owner", **options)) as owner:
        await initialized(owner, hooks=hooks(timeout=30))
        await owner.say(touching("attended"), "m-2")
        await owner.until(lambda f: f["type"] == "control_request", LONG_S)
    async with connected(broker.url, hello=opening("away2", "owner")) as owner:
        [pending] = owner.welcome["pending"]
        assert "seq" not in pending
        host = Host(owner, hook_callback=guard("allow"))
        await host.respond(pending["request_id"], guard("allow")(pending["request"]))
        await host.until(lambda f: f["type"] == "broker.turn_completed", LONG_S)
        assert made(broker, "attended")


async def hooks_of_another_are_refused(broker: Broker, options: Frame) -> None:
    """Whoever thinks that its hooks guard a tool must be right: a client that did not come first is told no."""
    async with connected(broker.url, hello={"options": options}) as client:
        host = Host(client)
        reply = await host.control("initialize", "i-1", hooks=hooks())
        assert (reply["subtype"], reply["error"]) == ("error", "hooks: only with options.initialize: client")
        reply = await host.control("initialize", "i-2")
        assert reply["subtype"] == "success"
        assert reply["response"]["commands"]
        assert (await client.turn("[[sim tokens=2]]", within_s=LONG_S))["subtype"] == "success"
    async with connected(broker.url, hello=opening("theirs", "owner", **options)) as owner:
        await initialized(owner, hooks=hooks())
        async with connected(broker.url, hello=opening("theirs", "other")) as other:
            reply = await Host(other).control("initialize", "i-3", hooks=hooks(timeout=9))
            assert "another client" in reply["error"]
            reply = await Host(other).control("initialize", "i-4")
            assert reply["subtype"] == "success"


async def messages_wait_for_the_clients_initialize(broker: Broker, options: Frame) -> None:
    """What is sent before it is held, told to be missing, and written behind it."""
    async with connected(broker.url, hello=opening("held", "owner", **options)) as owner:
        await owner.say("[[sim tokens=2]]", "early")
        error = await owner.error()
        assert (error["code"], error["retryable"]) == ("initialize_required", True)
        assert [frame["state"] for frame in owner.of_type("broker.message")] == ["queued"]
        host = await initialized(owner, hooks=hooks(), systemPrompt="You are a parrot.")
        assert (await host.until(lambda f: f["type"] == "broker.turn_completed", LONG_S))["id"] == "early"


async def a_restored_process_keeps_the_hooks(broker: Broker, options: Frame) -> None:
    """After a crash, and after a rest: the next process is told them before anything else happens."""
    hello = opening("restored", "owner", **options)
    async with connected(broker.url, hello=hello) as owner:
        host = await initialized(owner, hooks=hooks(timeout=10), sdkMcpServers=["own"])
        host.answers["hook_callback"] = guard("deny")
        await host.turn(touching("first"), "m-1", LONG_S)
        await eventually(lambda: is_written(broker, "touch first"))  # 2.1.197 writes up to 0.1 s after its result
        await killed(broker, owner)
        await host.turn(touching("second"), "m-2", LONG_S)
        assert host.events().count("PreToolUse") == 2
        assert [frame["reason"] for frame in owner.of_type("broker.state") if "reason" in frame] == ["resumed"]
        end = await host.turn(f'[[sim tool="{CALL}" tokens=2]] add', "m-3", LONG_S)
        assert not end["is_error"]
        assert "4242" in tool_results(owner)
    await eventually(lambda: broker.pool()["leased"] == 0, 20)
    async with connected(broker.url, hello=hello) as owner:
        assert owner.welcome["start"] == "restored"
        host = Host(owner, hook_callback=guard("deny"))
        await host.turn(touching("third"), "m-4", LONG_S)
        assert host.events() == ["PreToolUse"]
    assert not [name for name in ("first", "second", "third") if made(broker, name)]


async def a_server_in_the_client_is_called(broker: Broker, options: Frame) -> None:
    """From hello, from initialize, and by a live change; its messages go to the client that serves it alone."""
    servers = {"own": {"type": "sdk"}}
    hello: Frame = {
        "session": {"mode": "open", "id": "served"},
        "client": {"instance": "owner"},
        "options": {**options, "mcp_servers": servers, "allowed_tools": ["mcp__own"]},
    }
    async with connected(broker.url, hello=hello) as owner:
        beside: Frame = {"session": {"mode": "open", "id": "served"}, "client": {"instance": "other"}}
        async with connected(broker.url, hello=beside) as other:
            host = Host(owner)
            end = await host.turn(f'[[sim tool="{CALL}" tokens=2]] add', "m-1", LONG_S)
            assert not end["is_error"], end
            assert "4242" in tool_results(owner)
            reply = await host.control("mcp_set_servers", "c-1", servers={})
            assert reply["response"] == {"added": [], "removed": ["own"], "errors": {}}
            reply = await host.control("mcp_set_servers", "c-2", servers=servers)
            assert reply["response"] == {"added": ["own"], "removed": [], "errors": {}}
            await host.turn(f'[[sim tool="{CALL}" tokens=2]] add', "m-2", LONG_S)
            assert tool_results(owner).count("4242") == 2
            await other.terminal("m-2", LONG_S)
            assert not other.of_type("control_request")
        await owner.send({"type": "broker.end"})
    async with connected(
        broker.url, hello=opening("declared", "owner", **options, allowed_tools=["mcp__own"])
    ) as owner:
        host = await initialized(owner, sdkMcpServers=["own"])
        await host.turn(f'[[sim tool="{CALL}" tokens=2]] add', "m-1", LONG_S)
        assert "4242" in tool_results(owner)


async def a_server_whose_client_is_away_holds_nobody_up(broker: Broker, options: Frame) -> None:
    """Its handshake and its tools fail in a few seconds; the turns of others go on."""
    servers = {"own": {"type": "sdk"}}
    place: Frame = {"session": {"mode": "open", "id": "unserved"}}
    async with connected(broker.url, hello={**place, "options": options}) as client:
        gone: Frame = {**place, "client": {"instance": "owner"}, "options": {"mcp_servers": servers}}
        async with connected(broker.url, hello=gone):
            pass
        end = await Host(client, mcp_message=lambda request: None).turn("[[sim tokens=2]]", "m-1", 30)
        assert (end["type"], end["is_error"]) == ("broker.turn_completed", False)
        status = await client.control("mcp_status")
        rows = {row["name"]: row["status"] for row in status["response"]["mcpServers"]}
        assert rows["own"] != "connected"


def tool_results(client: Client) -> str:
    """Everything that the model was told by tools."""
    frames = [f for f in client.of_type("user") if isinstance(f["message"]["content"], list)]
    results = [block for frame in frames for block in frame["message"]["content"] if block["type"] == "tool_result"]
    return str([result["content"] for result in results])
