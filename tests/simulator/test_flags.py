"""The command line: every documented flag is accepted in both forms, everything else is refused."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator import flags
from simulator.flag_values import UsageError, warnings
from simulator.flags import Flags, flag_settings, parse

VALUES = {
    "permission-mode": "plan", "max-turns": "3", "max-budget-usd": "0.5", "max-thinking-tokens": "100",
    "json-schema": "{}", "agents": "{}", "thinking": "adaptive", "thinking-display": "omitted",
    "setting-sources": "user",
}  # fmt: skip
BASE = ["-p", "--input-format=stream-json", "--output-format=stream-json", "--verbose"]


def test_both_forms_of_a_value_are_the_same() -> None:
    """``--flag=value`` and ``--flag value``."""
    one = parse([*BASE, "--model=opus", "--max-turns=3", "--resume=x", "--allowedTools=Read,Bash(a,b)"])
    two = parse([*BASE, "--model", "opus", "--max-turns", "3", "-r", "x", "--allowed-tools", "Read", "Bash(a,b)"])
    assert one == two
    assert (one.model, one.max_turns, one.resume, one.allowed) == ("opus", 3, "x", ("Read", "Bash(a,b)"))


@pytest.mark.parametrize("name", sorted(flags.SWITCHES - {"version"}))
def test_every_switch_is_known(name: str) -> None:
    """Switches take no value."""
    parse([*BASE, f"--{name}"])
    with pytest.raises(UsageError, match="unknown option"):
        parse([*BASE, f"--{name}=1"])


@pytest.mark.parametrize("name", sorted(flags.ONE_VALUE - {"input-format", "output-format"}))
def test_every_option_is_known(name: str) -> None:
    """Options take one value, and only a valid one where there is a choice."""
    value = VALUES.get(name, "x")
    base = [*BASE, "--resume=y"] if name == "resume-session-at" else BASE
    parse([*base, f"--{name}={value}"])
    parse([*base, f"--{name}", value])
    with pytest.raises(UsageError, match="argument missing"):
        parse([*BASE, f"--{name}"])


@pytest.mark.parametrize("name", sorted(flags.MANY_VALUES))
def test_every_list_is_known(name: str) -> None:
    """Lists may be repeated."""
    parse([*BASE, f"--{name}=a", f"--{name}", "b", "c", "--verbose"])


@pytest.mark.parametrize(
    "arguments",
    [
        ["--bogus"], ["-z"], ["--permission-mode=zz"], ["--max-turns="], ["--max-turns=x"], ["--max-budget-usd=0"],
        ["--max-budget-usd=Infinity"], ["--thinking=zz"], ["--json-schema=[]"], ["--json-schema={"],
        ['--json-schema={"type":"zz"}'], ["--setting-sources=user,zz"], ["--agents={"], ["--resume-session-at=x"],
        ["--session-id=a", "--resume=b"], ["--session-id=a", "--continue"], ["--output-format=json"],
        ["--input-format=text"],
    ],
)  # fmt: skip
def test_mistakes_are_refused(arguments: list[str]) -> None:
    """Each with a text for stderr."""
    with pytest.raises(UsageError, match="rror"):
        parse([*BASE, *arguments])


def test_verbose_and_formats_are_required() -> None:
    """stream-json needs ``--verbose``, and nothing but stream-json is spoken here."""
    with pytest.raises(UsageError, match="requires --verbose"):
        parse(BASE[:-1])
    with pytest.raises(UsageError, match="stream-json"):
        parse(["-p", "hello"])


def test_optional_values_and_defaults() -> None:
    """``--resume`` without a value is told from one that is absent; a dash-leading value needs the equals sign."""
    assert parse(BASE) == Flags()
    assert parse([*BASE, "--resume"]).resume == ""
    assert parse([*BASE, "--resume", "--fork-session"]).resume == ""
    assert parse([*BASE, "--setting-sources="]).setting_sources == ()
    assert parse([*BASE, "--permission-mode=manual"]).permission_mode == "default"
    assert parse(["--version"]).version


def test_limits_are_numbers_of_any_kind() -> None:
    """Nought and negative numbers of turns are taken as the real program takes them, and so are fractions."""
    found = [parse([*BASE, f"--max-turns={text}"]).max_turns for text in ("0", "-1", "2.5", "1e2")]
    assert found == [0, -1, 2.5, 100]
    assert parse([*BASE, "--max-budget-usd=.5"]).max_budget_usd == 0.5


def test_some_lists_are_split_at_commas_and_some_are_not() -> None:
    """Models and tools are; directories, plugins and betas are not, they want a flag for each."""
    found = parse([*BASE, "--add-dir=/a,b", "--add-dir=/c", "--betas=x,y", "--plugin-dir=/p,q", "--fallback-model=a,b"])
    assert (found.directories, found.betas, found.plugins) == (("/a,b", "/c"), ("x,y",), ("/p,q",))
    assert found.fallbacks == ("a", "b")


def test_a_debug_file_is_enough() -> None:
    """Without a filter everything is logged; without either flag nothing is."""
    assert parse([*BASE, "--debug-file=/x"]).debug == ""
    assert parse([*BASE, "--debug=mcp", "--debug-file=/x"]).debug == "mcp"
    assert parse([*BASE, "--debug"]).debug == ""
    assert parse(BASE).debug is None


@pytest.mark.parametrize(
    ("effort", "betas", "is_subscriber", "told"),
    [
        ("bogus", (), False, ["Unknown --effort value 'bogus'"]),
        ("high", ("context-1m-2025-08-07",), False, []),
        (None, ("a", "b"), False, ["Beta header 'a'", "Beta header 'b'"]),
        (None, ("context-1m-2025-08-07",), True, ["only available for API key users"]),
        (None, (), True, []),
    ],
)
def test_what_is_ignored_is_told(
    effort: str | None, betas: tuple[str, ...], is_subscriber: bool, told: list[str]
) -> None:
    """An unknown effort, a beta that is not allowed, and any beta of a subscriber."""
    lines = list(warnings(effort, betas, is_subscriber=is_subscriber))
    assert len(lines) == len(told)
    assert all(part in line for part, line in zip(told, lines, strict=True))


def test_settings_are_json_or_a_file(tmp_path_factory: pytest.TempPathFactory) -> None:
    """``--settings`` takes both, and refuses what is no object."""
    path = tmp_path_factory.mktemp("settings") / "settings.json"
    path.write_text('{"a": 1}')
    assert flag_settings(parse([*BASE, '--settings={"a": 1}'])) == flag_settings(parse([*BASE, f"--settings={path}"]))
    for bad in ("/nowhere", "{", str(path.parent)):
        with pytest.raises(UsageError):
            flag_settings(parse([*BASE, f"--settings={bad}"]))
    path.write_text("[]")
    with pytest.raises(UsageError):
        flag_settings(parse([*BASE, f"--settings={path}"]))


@given(st.lists(st.text()))
def test_any_command_line_is_read_or_refused(arguments: list[str]) -> None:
    """No command line makes the parser fail in another way."""
    with contextlib.suppress(UsageError):
        parse([*BASE, *arguments])
