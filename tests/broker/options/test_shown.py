"""Answers of the CLI without what is secret in them."""

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from msgspec import Raw

from broker.options.shown import shown, shown_initialize
from protocol.controls import GetContextUsage, GetSettings, McpStatus
from tests.protocol.strategies import JSON
from tests.soak import size

SECRET = "canary-1234567890"


def raw(value: object) -> Raw:
    return Raw(msgspec.json.encode(value))


def test_settings_are_shown_by_a_list_of_keys() -> None:
    """Rules, model and style; no variable, no header, no command, and nothing that is not on the list."""
    layer = {
        "env": {"ANTHROPIC_API_KEY": SECRET},
        "apiKeyHelper": SECRET,
        "hooks": {"Stop": SECRET},
        "newKey": SECRET,
        "permissions": {"allow": ["Read"], "defaultMode": "plan", "extra": SECRET},
        "effortLevel": "high",
        "outputStyle": "Explanatory",
        "model": "opus",
    }
    sources = [{"source": "flagSettings", "settings": layer}, {"source": "policySettings", "settings": layer}, SECRET]
    answer = {"effective": layer, "sources": sources, "applied": {"model": "m", "effort": "low", "x": SECRET}}
    kept = {
        "permissions": {"allow": ["Read"], "defaultMode": "plan"},
        "effortLevel": "high",
        "outputStyle": "Explanatory",
        "model": "opus",
    }
    assert shown(GetSettings(), raw(answer)) == {
        "effective": kept,
        "sources": [{"source": "flagSettings", "settings": kept}],
        "applied": {"model": "m", "effort": "low"},
    }


def test_the_state_of_mcp_servers_is_shown_without_their_configuration() -> None:
    """Names, states, tools, and errors without addresses."""
    row = {
        "name": "acme",
        "status": "failed",
        "config": {"url": f"https://{SECRET}", "headers": {"Authorization": SECRET}},
        "error": f"refused by https://{SECRET}/",
        "tools": [],
    }
    found = shown(McpStatus(), raw({"mcpServers": [row, "x"], "more": SECRET}))
    shown_row = {"name": "acme", "status": "failed", "error": "could not be connected", "tools": []}
    assert found == {"mcpServers": [shown_row]}


@given(JSON)
@settings(max_examples=size(20, 60), deadline=None)
def test_no_answer_of_the_cli_is_too_strange(value: Any) -> None:
    """Whatever it says, something of the right form is shown."""
    assert list(shown(McpStatus(), raw(value))) == ["mcpServers"]
    assert set(shown(GetSettings(), raw(value))) == {"effective", "sources", "applied"}
    assert isinstance(shown_initialize(raw(value), is_own_account=False), dict)


@pytest.mark.parametrize("value", [{"a": 1}, None, []])
def test_the_rest_is_shown_as_it_is(value: object) -> None:
    """Nothing in it is secret."""
    assert shown(GetContextUsage(), raw(value)) == raw(value)


def test_the_answer_to_initialize() -> None:
    """Without what belongs to the machine; the account of an operator who pays is nobody's business."""
    answer = {"pid": 7, "commands": [], "account": {"email": SECRET, "tokenSource": "ANTHROPIC_API_KEY"}}
    assert shown_initialize(raw(answer), is_own_account=True) == {"commands": [], "account": answer["account"]}
    operators = shown_initialize(raw(answer), is_own_account=False)
    assert operators == {"commands": [], "account": {"tokenSource": "ANTHROPIC_API_KEY"}}


@pytest.mark.parametrize("value", [None, 5, "x", {}])
def test_a_list_that_is_none_is_empty(value: object) -> None:
    """Nothing that the CLI says ends the reading of its lines."""
    assert shown(McpStatus(), raw({"mcpServers": value})) == {"mcpServers": []}
    assert shown(GetSettings(), raw({"sources": value}))["sources"] == []
