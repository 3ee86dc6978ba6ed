"""What a process has to be told: merged from hello and from every change, copied, and taken back."""

import msgspec
import pytest

from broker.options.bound import Bound
from protocol.controls import HookEvent, HookMatcher, Initialize
from protocol.json_schema import JsonSchema
from protocol.mcp import McpHttp, McpSdk
from protocol.options import Agent, Credentials, Permissions, SessionOptions, Settings
from tests.broker.options.test_binding import EVERYTHING, OTHER, bound


def test_merging_names_what_changed() -> None:
    """Only what is given and differs counts; the prompt and the agents belong to ``initialize`` alone."""
    made = Bound()
    late = {
        "credentials", "model", "permission_mode", "max_thinking_tokens", "max_output_tokens", "betas", "effort",
        "allowed_tools", "disallowed_tools", "add_dirs", "settings", "output_style", "mcp_servers",
    }  # fmt: skip
    assert made.merge(EVERYTHING, with_initialize=False) == late
    assert made.initialize == {}
    assert made.merge(EVERYTHING, with_initialize=True) == frozenset()
    assert set(made.initialize) == {"systemPrompt", "appendSystemPrompt", "agents", "jsonSchema"}
    assert made.merge(SessionOptions(), with_initialize=True) == frozenset()
    assert made.merge(SessionOptions(model="haiku"), with_initialize=False) == {"model"}
    assert (made.model, made.permission_mode) == ("haiku", "plan")


def test_settings_are_merged_key_by_key() -> None:
    """A list replaces the list of its name; what is not given stays, and so do the rules of the options."""
    made = bound(SessionOptions(allowed_tools=["Read"], settings=Settings(Permissions(allow=["Grep"], deny=["Bash"]))))
    assert made.merge_settings(Settings(Permissions(allow=["Glob"]))) == {"settings"}
    assert made.permissions == {"allow": ["Read", "Glob"], "deny": ["Bash"]}
    assert made.merge_settings(Settings(Permissions(allow=["Glob"]))) == frozenset()
    assert made.merge_settings(Settings(Permissions(allow=[], additionalDirectories=["/srv"]))) == {"settings"}
    assert made.permissions == {"allow": ["Read"], "deny": ["Bash"], "additionalDirectories": ["/srv"]}
    assert made.merge_settings(Settings()) == frozenset()


def test_settings_that_imitate_an_option_are_that_option() -> None:
    """The effort and the default mode are the session's own; in one hello the option wins."""
    made = Bound()
    wish = Settings(Permissions(defaultMode="plan"), effortLevel="low")
    assert made.merge_settings(wish) == {"permission_mode", "effort"}
    assert (made.permission_mode, made.effort, made.permissions) == ("plan", "low", {})
    made.merge(SessionOptions(effort="high", permission_mode="default", settings=wish), with_initialize=True)
    assert (made.permission_mode, made.effort) == ("default", "high")


def test_what_only_initialize_could_set_is_named_when_it_differs() -> None:
    """A later hello with another prompt is told that it changes nothing; with the same one it hears nothing."""
    made = bound(EVERYTHING)
    assert made.differing(EVERYTHING) == []
    assert made.differing(SessionOptions()) == []
    assert made.differing(SessionOptions(system_prompt="Be brief.", initialize="broker")) == ["system_prompt"]
    other = SessionOptions(
        system_prompt="x",
        append_system_prompt="y",
        agents={"a": Agent("d", "q")},
        json_schema=msgspec.convert({"type": "object", "title": "t"}, JsonSchema),
    )
    assert made.differing(other) == ["system_prompt", "append_system_prompt", "agents", "json_schema"]
    assert made.differing(SessionOptions(initialize="client")) == ["initialize"]
    assert bound(SessionOptions(initialize="client")).differing(SessionOptions()) == []


def test_a_second_hello_before_the_bind_keeps_who_initializes() -> None:
    """It is the first one's wish unless the second says otherwise."""
    made = bound(SessionOptions(initialize="client"))
    made.merge(SessionOptions(model="opus"), with_initialize=True)
    assert (made.initialize_by, made.is_initialize_known) == ("client", False)


def test_the_clients_initialize_is_kept_for_the_next_process() -> None:
    """Its fields as they came but for nulls; the hooks apart; its servers among the session's."""
    made = bound(SessionOptions(initialize="client", mcp_servers={"acme": McpHttp("https://mcp.example.com/")}))
    hooks: dict[HookEvent, list[HookMatcher]] = {"Stop": [HookMatcher(["h"])]}
    wish = Initialize(hooks, ["own"], systemPrompt=["a", "b"], agents={"r": Agent("d", "p")}, promptSuggestions=False)
    assert made.set_initialize(wish) == {"own": McpSdk()}
    assert made.is_initialize_known
    assert made.hooks == hooks
    assert set(made.mcp_servers) == {"acme", "own"}
    assert made.initialize == {
        "systemPrompt": ["a", "b"],
        "agents": {"r": Agent("d", "p")},
        "promptSuggestions": False,
    }
    assert made.initialize_request["agents"] == {"r": {"description": "d", "prompt": "p"}}
    assert made.initialize_request["subtype"] == "initialize"


def test_a_copy_keeps_what_holds_now() -> None:
    """Later changes do not reach it, whatever they change."""
    made = bound(EVERYTHING)
    before = made.copy()
    assert before == made
    made.merge(OTHER, with_initialize=False)
    made.merge(SessionOptions(system_prompt="other", initialize="client"), with_initialize=True)
    made.set_initialize(Initialize({"Stop": [HookMatcher(["h"])]}, ["own"]))
    made.merge_settings(Settings(Permissions(deny=["Bash"])))
    assert before == bound(EVERYTHING)


@pytest.mark.parametrize("field", ["model", "rules", "mcp_servers"])
def test_what_was_refused_is_taken_back(field: str) -> None:
    """The fields that are named go back to what they were, and no others."""
    made = bound(EVERYTHING)
    before = made.copy()
    made.merge(OTHER, with_initialize=False)
    made.merge_settings(Settings(Permissions(deny=["Read"])))
    after = made.copy()
    made.take_back((field,), before)
    for name in Bound.__dataclass_fields__:
        assert getattr(made, name) == getattr(before if name == field else after, name), name


def test_a_base_url_of_ones_own_is_remembered() -> None:
    """Once a credential brought an address, a later one without has to be led back."""
    made = bound(SessionOptions(credentials=Credentials(api_key="k")))
    assert not made.had_own_base_url
    made.set_credentials(Credentials(api_key="k", base_url="https://api.example.com"))
    made.set_credentials(Credentials(api_key="k"))
    assert made.had_own_base_url
