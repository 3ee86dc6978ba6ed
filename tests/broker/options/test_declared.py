"""What clients serve to the CLI: hooks with their deadlines, and MCP servers of their own."""

from msgspec import UNSET

from broker.options.declared import CLI_EXTRA_S, HOOK_TIMEOUT_S, Declared, cli_hooks
from broker.turns.reader import Owner
from protocol.controls import HookMatcher
from protocol.mcp import McpHttp, McpSdk
from tests.broker.outlets import FakeReader

ONE, TWO = Owner.of(FakeReader("one")), Owner.of(FakeReader("two"))


def test_a_hook_has_the_deadline_that_it_was_declared_with() -> None:
    """By event and id; the shortest where it was declared twice; a minute without one; none for unknown ones."""
    declared = Declared()
    assert declared.hook_timeout_s("Stop", "h1") is None
    declared.take_hooks(
        ONE,
        {
            "PreToolUse": [HookMatcher(["h1", "h2"], "Bash", 5), HookMatcher(["h1"], "Read", 3)],
            "Stop": [HookMatcher(["h1"])],
        },
    )
    assert declared.hooks_owner is ONE
    assert declared.hook_timeout_s("PreToolUse", "h1") == 3
    assert declared.hook_timeout_s("PreToolUse", "h2") == 5
    assert declared.hook_timeout_s("Stop", "h1") == HOOK_TIMEOUT_S
    assert declared.hook_timeout_s("Stop", "h2") is None
    declared.take_hooks(TWO, {})
    assert (declared.hooks_owner, declared.hook_timeout_s("Stop", "h1")) == (TWO, None)


def test_the_cli_waits_longer_than_the_broker() -> None:
    """So that the broker's answer comes first; what guards a tool is told to block when all else fails."""
    hooks = cli_hooks(
        {
            "PreToolUse": [HookMatcher(["h1"], "Bash|Read", 5, "block"), HookMatcher(["h2"])],
            "Stop": [HookMatcher(["h3"], None, UNSET, "continue")],
        }
    )
    assert hooks == {
        "PreToolUse": [
            {"hookCallbackIds": ["h1"], "matcher": "Bash|Read", "timeout": 5 + CLI_EXTRA_S, "onFailure": "block"},
            {"hookCallbackIds": ["h2"], "timeout": HOOK_TIMEOUT_S + CLI_EXTRA_S, "onFailure": "block"},
        ],
        "Stop": [{"hookCallbackIds": ["h3"], "timeout": HOOK_TIMEOUT_S + CLI_EXTRA_S, "onFailure": "continue"}],
    }


def test_a_server_belongs_to_who_named_it_last() -> None:
    """One that lives elsewhere belongs to nobody, even under the same name."""
    declared = Declared()
    declared.take_servers(ONE, {"a": McpSdk(), "b": McpSdk(), "c": McpHttp("https://mcp.example.com/")})
    assert [declared.owner_of(name) for name in "abc"] == [ONE, ONE, None]
    declared.take_servers(TWO, {"a": McpSdk(), "b": McpHttp("https://mcp.example.com/")})
    assert [declared.owner_of(name) for name in "abc"] == [TWO, None, None]


def test_an_owner_is_known_by_its_name() -> None:
    """Any connection of the same instance is the owner; without a name only the one connection is."""
    named, nameless = FakeReader("tab"), FakeReader("")
    owner = Owner.of(named)
    assert owner.is_(FakeReader("tab"))
    assert not owner.is_(FakeReader("other"))
    assert not owner.is_(nameless)
    assert owner.among([nameless, again := FakeReader("tab")]) is again
    assert owner.among([nameless]) is None
    alone = Owner.of(nameless)
    assert alone.is_(nameless)
    assert not alone.is_(FakeReader(""))
