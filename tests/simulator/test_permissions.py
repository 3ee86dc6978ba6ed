"""Permission rules: what they match and who wins."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.permissions import Rules, decide, rule_text

CWD = "/srv/x"


def verdict(tool: str, command: str, mode: str = "default", **rules: tuple[str, ...]) -> str:
    given_input = {"command": command} if tool == "Bash" else {"file_path": command}
    return decide(tool, given_input, mode, Rules(**rules), CWD).behavior


@pytest.mark.parametrize(
    ("rule", "command", "matches"),
    [
        ("Bash", "curl x", True), ("Bash(*)", "curl x", True), ("*", "curl x", True), ("Bash()", "curl x", False),
        ("Bash(curl:*)", "curl x", True), ("Bash(curl:*)", "curl", True), ("Bash(curl:*)", "curlx", False),
        ("Bash(curl *)", "curl x", True), ("Bash(curl x)", "curl x", True), ("Bash(curl x)", "curl xy", False),
        ("Bash(cu*x)", "curl x", True), ("Bash(curl:*)", "curl a && curl b", True),
        ("Bash(curl:*)", "curl a && wget b", False),
        ("Bash(curl:*)", "curl a; wget b", False), ("Bash(curl:*)", "curl a | wget b", False),
        ("Read", "curl x", False), ("mcp__a", "curl x", False), ("((", "curl x", False),
    ],
)  # fmt: skip
def test_allow_rules_cover_the_whole_line(rule: str, command: str, matches: bool) -> None:
    """A line of several commands is allowed only if each of them is."""
    assert verdict("Bash", command, allow=(rule,)) == ("allow" if matches else "ask")


def test_one_denied_command_denies_the_line() -> None:
    """Deny beats allow, ask beats allow, and bypass beats all but deny."""
    assert verdict("Bash", "ls && rm x", deny=("Bash(rm:*)",), allow=("Bash",)) == "deny"
    assert verdict("Bash", "ls", ask=("Bash(ls:*)",), allow=("Bash",)) == "ask"
    assert verdict("Bash", "ls", "bypassPermissions", ask=("Bash",)) == "allow"
    assert verdict("Bash", "ls", "bypassPermissions", deny=("Bash",)) == "deny"


@pytest.mark.parametrize(
    ("rule", "matches"), [("mcp__acme", True), ("mcp__acme__*", True), ("mcp__*", True), ("mcp__ac", False)]
)
def test_server_rules_cover_its_tools(rule: str, matches: bool) -> None:
    """``mcp__server`` means all tools of that server and of no other."""
    assert (verdict("mcp__acme__find", "", allow=(rule,)) == "allow") is matches


def test_reading_is_free_inside_the_directory() -> None:
    """Reading inside runs, outside asks; editing inside runs only in ``acceptEdits``."""
    assert verdict("Read", "/srv/x/a") == "allow"
    assert verdict("Read", "/srv/x/../etc/passwd") == "ask"
    assert verdict("Write", "/srv/x/a") == "ask"
    assert verdict("Write", "/srv/x/a", "acceptEdits") == "allow"
    assert verdict("Write", "/etc/a", "acceptEdits") == "ask"


@pytest.mark.parametrize("command", ["echo a > f", "echo $(rm x)", "echo `rm x`", "", "echo a | tee f"])
def test_harmless_commands_stop_being_harmless(command: str) -> None:
    """Redirection, substitution and unknown companions ask."""
    assert verdict("Bash", command) == "ask"


@given(st.text(), st.text())
def test_any_rule_and_command_decide_something(rule: str, command: str) -> None:
    """No rule text breaks the decision."""
    assert verdict("Bash", command, allow=(rule,), deny=(f"Bash({rule})",)) in {"allow", "ask", "deny"}


def test_rules_of_answers_become_texts() -> None:
    """``{toolName, ruleContent}`` in the form of a settings rule; anything else is nothing."""
    assert rule_text({"toolName": "Bash", "ruleContent": "ls:*"}) == "Bash(ls:*)"
    assert rule_text({"toolName": "Read"}) == "Read"
    assert [rule_text(value) for value in (None, {}, {"toolName": 5})] == [None, None, None]
