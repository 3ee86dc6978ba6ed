"""Launch profiles: one form of equal wishes, their flags, and which configured one fits."""

import random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.config.launch_profile import OTHER, LaunchProfile, SpawnOptions, choose
from protocol.options import SPAWN_OPTIONS, Debug, SessionOptions
from simulator.flags import parse

DEBUG_FILE = "/s/debug.log"
BASE = ("-p", "--input-format=stream-json", "--output-format=stream-json", "--verbose")

words = st.text("abc-=,./ \t\"'$`\\é", min_size=1, max_size=12)
folders = st.lists(words.map(lambda word: f"/{word}"), max_size=3)
categories = st.lists(st.from_regex(r"!?[a-z-]{1,6}", fullmatch=True), max_size=3)
wishes = st.fixed_dictionaries(
    {},
    optional={
        "tools": st.lists(st.sampled_from(["Bash", "Read", "Edit"]), max_size=4),
        "fallback_model": st.sampled_from(["haiku", "claude-x[1m]"]),
        "plugin_dirs": folders,
        "setting_sources": st.lists(st.sampled_from(["user", "project", "local"]), max_size=3),
        "max_turns": st.integers(1, 10_000),
        "max_budget_usd": st.floats(1e-9, 1e6) | st.integers(1, 100),
        "debug": categories.map(",".join),
        "verbose": st.booleans(),
        "ide": st.booleans(),
        "permission_mode": st.sampled_from(["default", "bypassPermissions"]),
    },
)


def shuffled(wish: dict[str, Any], seed: int) -> dict[str, Any]:
    """The same wish in another order, with repetitions."""
    dice = random.Random(seed)
    keys = list(wish)
    dice.shuffle(keys)
    result: dict[str, Any] = {}
    for key in keys:
        value = wish[key]
        if isinstance(value, list):
            value = [*value, *value[:1]]
            dice.shuffle(value)
        elif key == "debug":
            parts = [*value.split(","), *value.split(",")[:1]]
            dice.shuffle(parts)
            value = dice.choice([",".join(parts), Debug(",".join(parts), frames=False)])
        result[key] = value
    return result


@given(wishes, st.integers())
def test_equal_wishes_are_one_profile(wish: dict[str, Any], seed: int) -> None:
    """Order and repetition change neither the options nor the hash nor the flags."""
    one, other = (LaunchProfile("m", SpawnOptions().taking(made)) for made in (wish, shuffled(wish, seed)))
    assert one == other
    assert one.hash == other.hash
    assert one.flags(DEBUG_FILE) == other.flags(DEBUG_FILE)
    assert one.options.differing(shuffled(wish, seed)) == []


@given(wishes, wishes)
def test_different_options_have_different_hashes_and_flags(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Twelve digits tell them apart, and so does the command line."""
    a, b = (LaunchProfile("m", SpawnOptions().taking(wish)) for wish in (one, other))
    assert (a == b) == (a.hash == b.hash) == (a.flags(DEBUG_FILE) == b.flags(DEBUG_FILE))
    assert len(a.hash) == 12
    assert int(a.hash, 16) >= 0


def test_the_hash_is_the_same_in_every_broker() -> None:
    """It stands in metrics and logs of several brokers: a change of it is a change that operators see."""
    assert LaunchProfile("sonnet").hash == "97e3b9f3971e"
    wish = {"tools": ["Read", "Bash"], "max_turns": 3, "debug": "api"}
    assert LaunchProfile("opus", SpawnOptions().taking(wish)).hash == "3f961cff426c"


@given(wishes)
def test_no_value_becomes_a_flag_of_its_own(wish: dict[str, Any]) -> None:
    """However a value looks, it stays in one argument behind its flag's name."""
    options = SpawnOptions().taking(wish)
    flags = LaunchProfile("m", options).flags(DEBUG_FILE)
    known = (
        "--model=", "--setting-sources=", "--tools=", "--fallback-model=", "--plugin-dir=", "--max-turns=",
        "--max-budget-usd=", "--debug=", "--debug-file=",
    )  # fmt: skip
    switches = {"--include-hook-events", "--ide", "--allow-dangerously-skip-permissions"}
    assert all(flag.startswith(known) or flag in switches for flag in flags)
    assert [flag for flag in flags if flag.startswith("--plugin-dir=")] == [
        f"--plugin-dir={path}" for path in sorted(set(wish.get("plugin_dirs", [])))
    ]
    parsed = parse([*BASE, *flags, "--session-id=x"])
    assert parsed.session_id == "x"
    assert parsed.tools == options.tools
    assert parsed.setting_sources == options.setting_sources
    assert parsed.max_turns == options.max_turns
    assert parsed.may_bypass == (wish.get("permission_mode") == "bypassPermissions")


@pytest.mark.parametrize(
    ("wish", "flags"),
    [
        ({}, []),
        ({"tools": []}, ["--tools="]),
        ({"tools": ["Read", "Bash"]}, ["--tools=Bash,Read"]),
        ({"debug": ""}, [f"--debug-file={DEBUG_FILE}"]),
        ({"debug": "mcp,api"}, ["--debug=api,mcp", f"--debug-file={DEBUG_FILE}"]),
        ({"debug": "-x"}, ["--debug=-x", f"--debug-file={DEBUG_FILE}"]),
        ({"plugin_dirs": ["/b", "/a"]}, ["--plugin-dir=/a", "--plugin-dir=/b"]),
        ({"max_turns": 2, "max_budget_usd": 1}, ["--max-turns=2", "--max-budget-usd=1.0"]),
        ({"verbose": True, "ide": True}, ["--include-hook-events", "--ide"]),
        ({"permission_mode": "bypassPermissions"}, ["--allow-dangerously-skip-permissions"]),
        ({"permission_mode": "plan", "verbose": False, "ide": False, "system_prompt": "x"}, []),
    ],
)
def test_flags(wish: dict[str, Any], flags: list[str]) -> None:
    """The command line of each option; what is bound late adds nothing."""
    found = LaunchProfile("opus", SpawnOptions().taking(wish)).flags(DEBUG_FILE)
    assert found[:2] == ["--model=opus", "--setting-sources="]
    assert found[2:] == flags


def test_setting_sources_are_named_in_the_order_of_the_cli() -> None:
    """Whatever order they were given in; without any, none is read."""
    wish = {"setting_sources": ["local", "user", "local"]}
    assert LaunchProfile("m", SpawnOptions().taking(wish)).flags("")[1] == "--setting-sources=user,local"


def test_every_spawn_option_of_hello_is_one_of_the_profile() -> None:
    """The two lists cannot drift apart."""
    names = {field.name for field in msgspec.structs.fields(SpawnOptions)}
    assert set(SPAWN_OPTIONS) == names - {"bypass"}


def test_what_a_running_process_cannot_have_is_named() -> None:
    """Only what was given and is not so; equal wishes in another form are no difference."""
    options = SpawnOptions().taking({"tools": ["Bash", "Read"], "debug": "api"})
    text = '{"tools":["Read","Bash"],"debug":{"filter":"api","frames":false},"max_turns":3,"ide":false}'
    assert options.differing(msgspec.json.decode(text, type=SessionOptions).given()) == ["max_turns"]
    assert options.differing({"tools": ["Read"], "debug": "mcp"}) == ["tools", "debug"]
    assert options.differing({"permission_mode": "bypassPermissions"}) == ["permission_mode"]
    bypassing = options.taking({"permission_mode": "bypassPermissions"})
    assert bypassing.differing({"permission_mode": "bypassPermissions"}) == []
    assert bypassing.differing({"permission_mode": "plan"}) == []


# -- choosing --------------------------------------------------------------------------------------------------------

TOOLS = SpawnOptions().taking({"tools": ["Read"]})
CONFIGURED = {
    "default": LaunchProfile("sonnet"),
    "big": LaunchProfile("opus"),
    "reader": LaunchProfile("haiku", TOOLS),
    "reader-opus": LaunchProfile("opus", TOOLS),
}


@pytest.mark.parametrize(
    ("model", "options", "pool", "started_with"),
    [
        (None, SpawnOptions(), "default", "sonnet"),
        ("sonnet", SpawnOptions(), "default", "sonnet"),
        ("opus", SpawnOptions(), "big", "opus"),
        ("haiku", SpawnOptions(), "default", "sonnet"),
        (None, TOOLS, "reader", "haiku"),
        ("haiku", TOOLS, "reader", "haiku"),
        ("opus", TOOLS, "reader-opus", "opus"),
        ("sonnet", TOOLS, "reader", "haiku"),
        ("opus", SpawnOptions(verbose=True), OTHER, "opus"),
        (None, SpawnOptions(verbose=True), OTHER, "sonnet"),
        (None, SpawnOptions(tools=("Read",), bypass=True), OTHER, "sonnet"),
    ],
)
def test_the_profile_that_fits(model: str | None, options: SpawnOptions, pool: str, started_with: str) -> None:
    """Exact, else equal in everything but the model, else an unknown one that starts with the wished model."""
    choice = choose(CONFIGURED, model, options)
    assert (choice.pool, choice.profile.model) == (pool, started_with)
    assert choice.profile.options == options
    assert choice.is_configured == (pool != OTHER)


def test_what_was_spent_is_taken_off_the_budget() -> None:
    """A restored process gets what is left, never nothing; without a budget, or before the first turn, all stays."""
    choice = choose(CONFIGURED, None, SpawnOptions(max_budget_usd=1.0))
    assert choice.having_spent(0.0) is choice
    assert "--max-budget-usd=0.7" in choice.having_spent(0.3).profile.flags("")
    assert "--max-budget-usd=1e-06" in choice.having_spent(5.0).profile.flags("")
    assert choice.having_spent(5.0).pool == choice.pool
    plain = choose(CONFIGURED, None, SpawnOptions())
    assert plain.having_spent(5.0) is plain


def test_without_a_default_the_first_profile_is_it() -> None:
    """An operator may name profiles as he likes."""
    configured = {"b": LaunchProfile("opus"), "a": LaunchProfile("haiku")}
    assert choose(configured, None, SpawnOptions()).pool == "b"
    assert choose(configured, "sonnet", SpawnOptions()).pool == "b"
    assert choose(configured, "haiku", SpawnOptions()).pool == "a"
    assert choose(configured, None, TOOLS).profile.model == "opus"


def test_only_a_profile_that_may_bypass_does() -> None:
    """A process on which the mode can be set is nobody's who did not ask for it."""
    configured = {"default": LaunchProfile("sonnet"), "free": LaunchProfile("sonnet", SpawnOptions(bypass=True))}
    asking = SpawnOptions().taking({"permission_mode": "bypassPermissions"})
    assert choose(configured, None, asking).pool == "free"
    assert choose(configured, None, SpawnOptions()).pool == "default"
    assert choose({"free": configured["free"]}, None, SpawnOptions()).pool == OTHER
