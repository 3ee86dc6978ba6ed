"""What of a conversation lies on disk: everything that a process is told but its secrets."""

from typing import Any

import pytest

from broker.config.launch_profile import SpawnOptions
from broker.options.bound import Bound
from broker.sessions.record import PLAIN, Kept, Record, decode, encode, kept, take_up
from protocol.controls import HookMatcher
from protocol.frames import SessionTotals
from protocol.mcp import McpHttp
from protocol.options import Agent, Credentials, Permissions, SessionOptions, Settings

SERVER = McpHttp("https://mcp.example/?key=canary-url", headers={"Authorization": "Bearer canary-header"})
OPTIONS: dict[str, Any] = {
    "credentials": Credentials(oauth_token="canary-token"), "model": "opus", "permission_mode": "plan",
    "system_prompt": "You are a pirate.", "append_system_prompt": "Arr.", "json_schema": {"type": "object"},
    "agents": {"a": Agent("digs", "Dig.", mcpServers=["docs", {"own": SERVER}])},
    "settings": Settings(Permissions(deny=["Bash"]), outputStyle="Learning"), "allowed_tools": ["Read"],
    "mcp_servers": {"own": SERVER}, "max_thinking_tokens": 5, "effort": "low", "tools": ["Read"], "verbose": True,
}  # fmt: skip


def bound() -> Bound:
    made, options = Bound(), SessionOptions(**OPTIONS)
    made.take_spawn(options)
    made.merge(options, with_initialize=True)
    return made


def stored(made: Bound) -> Record:
    """By way of the disk."""
    found = decode(encode(Record("0b4e", "0b4ec0de", 1.0, 2.0, bound=kept(made), total=SessionTotals(3))))
    assert found is not None
    return found


def test_no_secret_lies_on_disk() -> None:
    """Credentials, headers, addresses; the names of an agent's servers stay."""
    data = encode(Record("d", "s", 1.0, 2.0, bound=kept(bound())))
    assert b"canary" not in data
    assert b"docs" in data


def test_everything_else_is_told_to_the_next_process() -> None:
    """Prompts, rules, modes, what a process is started with."""
    before, after = bound(), Bound()
    record = stored(before)
    take_up(record.bound, after)
    for name in PLAIN:
        assert getattr(after, name) == getattr(before, name), name
    assert after.initialize_request["systemPrompt"] == ["You are a pirate."]
    assert after.initialize["agents"]["a"] == Agent("digs", "Dig.", mcpServers=["docs"])
    assert after.permissions == before.permissions
    assert after.spawn == SpawnOptions(tools=("Read",), verbose=True)
    assert (after.credentials, after.mcp_servers) == (None, {})
    assert record.total == SessionTotals(3)


def test_a_clients_initialize_is_awaited_again() -> None:
    """Its hooks guard tools: nothing is written before they are there."""
    before, after = Bound(initialize_by="client"), Bound()
    before.hooks = {"PreToolUse": [HookMatcher(["guard"])]}
    take_up(stored(before).bound, after)
    assert (after.initialize_by, after.is_initialize_known, after.hooks) == ("client", False, {})


def test_every_field_of_bound_is_kept_or_is_known_not_to_be() -> None:
    """A new one needs a decision."""
    apart = {"credentials", "mcp_servers", "mcp_off", "hooks", "is_initialize_known", "default_base_url",
             "had_own_base_url"}  # fmt: skip
    assert {*Bound.__slots__} == {*PLAIN, "initialize"} | apart
    assert {*Kept.__struct_fields__} == {*PLAIN, "initialize", "agents"}


def test_a_record_that_is_cut_or_changed_at_any_byte_raises_nothing() -> None:
    """Cut, it is none; with one bit changed, none or a record."""
    data = encode(Record("0b4e", "0b4ec0de", 1.0, 2.0, fork_of="p", bound=kept(bound()), total=SessionTotals(3)))
    assert [size for size in range(len(data)) if decode(data[:size]) is not None] == []
    read = sum(
        decode(data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]) is not None
        for at in range(len(data))
        for bit in range(8)
    )
    print(f"{len(data)} cuts: none is read; {8 * len(data)} changed bits: {read} are")
    assert decode(data) is not None


@pytest.mark.parametrize("data", [b"", b"{}", b"null", b"[", b'{"directory":1}', b"\xff"])
def test_what_no_broker_has_written_is_none(data: bytes) -> None:
    """Nothing is raised."""
    assert decode(data) is None
