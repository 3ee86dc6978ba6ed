"""Options to the lines that make a warm process a tenant's."""

import json
from typing import Any

import pytest
from msgspec import Raw

from broker.binding import Bound, Step, burst, credential_steps, expected_key_source, mcp_errors
from protocol.options import Agent, Credentials, McpHttp, SessionOptions

CANARY = "sk-canary-000000000000"
MCP = {"acme": McpHttp("https://mcp.example.com/", {"Authorization": "Bearer x"})}
AGENTS = {"reviewer": Agent("d", "p")}
EVERYTHING = SessionOptions(
    credentials=Credentials(oauth_token="tok", base_url="https://api.example.com"),
    model="opus",
    max_thinking_tokens=0,
    max_output_tokens=100,
    system_prompt="You are a pirate.",
    append_system_prompt="Arr.",
    agents=AGENTS,
    permission_mode="plan",
    allowed_tools=["Read"],
    disallowed_tools=["Bash(rm:*)"],
    mcp_servers=MCP,
    permission_timeout_s=5.0,
)


def bound(options: SessionOptions) -> Bound:
    made = Bound()
    made.merge(options, with_initialize=True)
    return made


def requests(steps: list[Step]) -> list[tuple[str, Any]]:
    """Option and payload of each line."""
    found = []
    for step in steps:
        line = json.loads(step.line)
        assert step.line.count(b"\n") == 1
        assert step.request_id == line.get("request_id")
        found.append((step.option, line.get("request", line.get("variables"))))
    return found


def changed(made: Bound, *names: str) -> list[tuple[str, Any]]:
    return requests(burst(made, "sonnet", is_changed_only=frozenset(names)))


def settings(**given: Any) -> dict[str, Any]:
    return {"subtype": "apply_flag_settings", "settings": given}


# -- the whole burst -------------------------------------------------------------------------------------------------


def test_without_options_only_initialize_is_sent() -> None:
    """A process that nobody asked anything of still needs its one ``initialize``."""
    assert requests(burst(Bound(), "sonnet")) == [("initialize", {"subtype": "initialize"})]


def test_every_option_in_its_order() -> None:
    """The credential comes first, since a model may be checked with it; MCP servers come last and hold nobody up."""
    steps = burst(bound(EVERYTHING), "sonnet")
    assert requests(steps) == [
        ("credentials", {"CLAUDE_CODE_OAUTH_TOKEN": "tok"}),
        (
            "allowed_tools",
            settings(
                permissions={"allow": ["Read"], "deny": ["Bash(rm:*)"]},
                env={"ANTHROPIC_BASE_URL": "https://api.example.com", "CLAUDE_CODE_MAX_OUTPUT_TOKENS": "100"},
            ),
        ),
        (
            "initialize",
            {
                "subtype": "initialize",
                "systemPrompt": ["You are a pirate."],
                "appendSystemPrompt": "Arr.",
                "agents": {"reviewer": {"description": "d", "prompt": "p"}},
            },
        ),
        ("model", {"subtype": "set_model", "model": "opus"}),
        ("permission_mode", {"subtype": "set_permission_mode", "mode": "plan"}),
        ("max_thinking_tokens", {"subtype": "set_max_thinking_tokens", "max_thinking_tokens": 0}),
        (
            "mcp_servers",
            {
                "subtype": "mcp_set_servers",
                "servers": {
                    "acme": {
                        "type": "http",
                        "url": "https://mcp.example.com/",
                        "headers": {"Authorization": "Bearer x"},
                    }
                },
            },
        ),
    ]
    assert [step.gates_welcome for step in steps] == [True] * 6 + [False]
    assert [step.request_id is None for step in steps] == [True] + [False] * 6
    assert len({step.request_id for step in steps}) == 7


def test_ids_of_two_binds_differ() -> None:
    """Answers of different binds cannot be mixed up, and an id names its option."""
    first, second = burst(Bound(), "sonnet"), burst(Bound(), "sonnet")
    assert first[0].request_id != second[0].request_id
    assert str(first[0].request_id).endswith("-initialize")


def test_the_profiles_own_model_is_not_set_again() -> None:
    """The process was started with it; setting it costs an API call."""
    assert [option for option, _ in requests(burst(bound(SessionOptions(model="sonnet")), "sonnet"))] == ["initialize"]


@pytest.mark.parametrize(
    ("options", "name", "given"),
    [
        (SessionOptions(allowed_tools=[]), "allowed_tools", {"permissions": {"allow": []}}),
        (SessionOptions(disallowed_tools=["Bash"]), "allowed_tools", {"permissions": {"deny": ["Bash"]}}),
        (SessionOptions(max_output_tokens=1), "max_output_tokens", {"env": {"CLAUDE_CODE_MAX_OUTPUT_TOKENS": "1"}}),
        (
            SessionOptions(credentials=Credentials(api_key="k")),
            "credentials",
            {"env": {"ANTHROPIC_API_KEY": "k"}},
        ),
        (
            SessionOptions(credentials=Credentials(auth_token="t"), max_output_tokens=1),
            "credentials",
            {"env": {"ANTHROPIC_AUTH_TOKEN": "t", "CLAUDE_CODE_MAX_OUTPUT_TOKENS": "1"}},
        ),
    ],
)
def test_settings_name_the_option_that_a_refusal_is_about(
    options: SessionOptions, name: str, given: dict[str, Any]
) -> None:
    """One ``apply_flag_settings`` carries what needs it, under the name of the weightiest option in it."""
    assert requests(burst(bound(options), "sonnet"))[0] == (name, settings(**given))


def test_credentials_by_kind() -> None:
    """An OAuth token goes by the environment line, everything else by the settings' environment."""
    url = "https://api.example.com"
    line, env = credential_steps(Credentials(oauth_token="o", base_url=url))
    assert line is not None
    assert json.loads(line) == {
        "type": "update_environment_variables",
        "variables": {"CLAUDE_CODE_OAUTH_TOKEN": "o"},
    }
    assert env == {"ANTHROPIC_BASE_URL": url}
    assert credential_steps(Credentials(api_key="k")) == (None, {"ANTHROPIC_API_KEY": "k"})
    assert credential_steps(Credentials(auth_token="a")) == (None, {"ANTHROPIC_AUTH_TOKEN": "a"})


def test_the_key_source_that_init_must_name() -> None:
    """Only an API key has a source of its own; without a credential there is nothing to compare."""
    assert expected_key_source(Credentials(api_key="k")) == "ANTHROPIC_API_KEY"
    assert expected_key_source(Credentials(oauth_token="o")) == "none"
    assert expected_key_source(Credentials(auth_token="a")) == "none"
    assert expected_key_source(None) is None


def test_no_secret_in_a_text_form() -> None:
    """Whoever logs what is bound, or a step of it, shows no credential and no header."""
    options = SessionOptions(
        credentials=Credentials(oauth_token=CANARY),
        mcp_servers={"acme": McpHttp("https://mcp.example.com/", {"Authorization": CANARY})},
    )
    made = bound(options)
    assert CANARY not in repr(made)
    assert CANARY not in repr(burst(made, "sonnet"))
    assert CANARY in str([step.line for step in burst(made, "sonnet")])


# -- what a later hello changes --------------------------------------------------------------------------------------


def test_merging_names_what_changed() -> None:
    """Only what is given and differs counts; the prompt and the agents belong to ``initialize`` alone."""
    made = Bound()
    late = {
        "credentials", "model", "permission_mode", "max_thinking_tokens", "max_output_tokens", "allowed_tools",
        "disallowed_tools", "mcp_servers",
    }  # fmt: skip
    assert made.merge(EVERYTHING, with_initialize=False) == late
    assert made.initialize == {}
    assert made.merge(EVERYTHING, with_initialize=True) == frozenset()
    assert set(made.initialize) == {"systemPrompt", "appendSystemPrompt", "agents"}
    assert made.merge(SessionOptions(), with_initialize=True) == frozenset()
    assert made.merge(SessionOptions(model="haiku"), with_initialize=False) == {"model"}
    assert (made.model, made.permission_mode) == ("haiku", "plan")


def test_what_only_initialize_could_set_is_named_when_it_differs() -> None:
    """A later hello with another prompt is told that it changes nothing; with the same one it hears nothing."""
    made = bound(EVERYTHING)
    assert made.differing(EVERYTHING) == []
    assert made.differing(SessionOptions()) == []
    assert made.differing(SessionOptions(system_prompt="Be brief.")) == ["system_prompt"]
    other = SessionOptions(system_prompt="x", append_system_prompt="y", agents={"a": Agent("d", "q")})
    assert made.differing(other) == ["system_prompt", "append_system_prompt", "agents"]
    assert Bound().differing(other) == ["system_prompt", "append_system_prompt", "agents"]


def test_only_what_changed_is_sent_to_a_live_process() -> None:
    """One line per change, no ``initialize``, and nothing when nothing changed."""
    made = bound(EVERYTHING)
    assert changed(made) == []
    assert changed(made, "model") == [("model", {"subtype": "set_model", "model": "opus"})]
    assert [option for option, _ in changed(made, "permission_mode", "max_thinking_tokens", "mcp_servers")] == [
        "permission_mode", "max_thinking_tokens", "mcp_servers"
    ]  # fmt: skip


def test_the_profiles_own_model_is_set_again_on_a_live_process() -> None:
    """It may run another one by now."""
    assert changed(bound(SessionOptions(model="sonnet")), "model")[0][1]["model"] == "sonnet"


def test_one_kind_of_credential_clears_the_others() -> None:
    """A rotation leaves no second credential behind that the CLI could prefer."""
    made = bound(SessionOptions(credentials=Credentials(api_key="k")))
    assert changed(made, "credentials") == [
        ("credentials", settings(env={"ANTHROPIC_API_KEY": "k", "ANTHROPIC_AUTH_TOKEN": ""}))
    ]
    made.merge(SessionOptions(credentials=Credentials(oauth_token="o")), with_initialize=False)
    assert changed(made, "credentials") == [
        ("credentials", {"CLAUDE_CODE_OAUTH_TOKEN": "o"}),
        ("credentials", settings(env={"ANTHROPIC_API_KEY": "", "ANTHROPIC_AUTH_TOKEN": ""})),
    ]


def test_the_environment_is_always_sent_whole() -> None:
    """The CLI replaces ``env`` as a whole: a new cap must not take the key away, nor a new key the cap."""
    made = bound(SessionOptions(credentials=Credentials(api_key="k"), max_output_tokens=1))
    env = {"ANTHROPIC_API_KEY": "k", "ANTHROPIC_AUTH_TOKEN": "", "CLAUDE_CODE_MAX_OUTPUT_TOKENS": "1"}
    assert changed(made, "max_output_tokens") == [("max_output_tokens", settings(env=env))]
    assert changed(made, "credentials") == [("credentials", settings(env=env))]
    made = bound(SessionOptions(credentials=Credentials(oauth_token="o"), max_output_tokens=1))
    assert [option for option, _ in changed(made, "max_output_tokens")] == ["max_output_tokens"]
    assert changed(bound(SessionOptions(max_output_tokens=1)), "credentials") == []


def test_permission_rules_are_always_sent_whole() -> None:
    """The same holds for ``permissions``: a new deny rule keeps the allowed ones."""
    made = bound(SessionOptions(allowed_tools=["Read"], disallowed_tools=["Bash"]))
    rules = settings(permissions={"allow": ["Read"], "deny": ["Bash"]})
    assert changed(made, "disallowed_tools") == changed(made, "allowed_tools") == [("allowed_tools", rules)]


def test_servers_that_are_taken_away_are_told() -> None:
    """An empty set replaces the old one on a live process; a fresh one needs no line for it."""
    made = bound(SessionOptions(mcp_servers={}))
    assert changed(made, "mcp_servers") == [("mcp_servers", {"subtype": "mcp_set_servers", "servers": {}})]
    assert [option for option, _ in requests(burst(made, "sonnet"))] == ["initialize"]


# -- what the CLI refused --------------------------------------------------------------------------------------------


def test_a_copy_keeps_what_holds_now() -> None:
    """Later changes do not reach it."""
    made = bound(EVERYTHING)
    before = made.copy()
    assert before == made
    made.merge(SessionOptions(model="haiku", max_output_tokens=7, allowed_tools=[]), with_initialize=False)
    made.merge(SessionOptions(system_prompt="other"), with_initialize=True)
    assert before == bound(EVERYTHING)


OTHER = SessionOptions(
    credentials=Credentials(api_key="k"),
    model="haiku",
    max_thinking_tokens=9,
    max_output_tokens=9,
    permission_mode="default",
    allowed_tools=["Bash"],
    mcp_servers={},
)


@pytest.mark.parametrize(
    ("option", "fields"),
    [
        ("model", {"model"}),
        ("permission_mode", {"permission_mode"}),
        ("max_thinking_tokens", {"max_thinking_tokens"}),
        ("mcp_servers", {"mcp_servers"}),
        ("credentials", {"credentials", "env"}),
        ("max_output_tokens", {"env"}),
        ("allowed_tools", {"permissions", "credentials", "env"}),
    ],
)
def test_what_was_refused_is_taken_back(option: str, fields: set[str]) -> None:
    """With the option goes everything that its line carried, and nothing else."""
    made = bound(EVERYTHING)
    before = made.copy()
    made.merge(OTHER, with_initialize=False)
    after = made.copy()
    made.take_back(option, before)
    for name in Bound.__dataclass_fields__:
        assert getattr(made, name) == getattr(before if name in fields else after, name), name


def test_every_step_can_be_taken_back() -> None:
    """Each line that a live process may refuse bears a name that ``take_back`` knows."""
    made = bound(EVERYTHING)
    names = made.merge(OTHER, with_initialize=False)
    for step in burst(made, "sonnet", is_changed_only=names):
        made.take_back(step.option, Bound())


# -- answers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (b'{"added":["acme"],"removed":[],"errors":{}}', {}),
        (b'{"errors":{"acme":"HTTP 401"}}', {"acme": "HTTP 401"}),
        (b'{"errors":{"acme":"' + b"x" * 1000 + b'"}}', {"acme": "x" * 256}),
        (b"{}", {}),
        (b"null", {"*": "an answer of unknown form"}),
        (b'{"errors":["acme"]}', {"*": "an answer of unknown form"}),
        (b"[" * 100_000, {"*": "an answer of unknown form"}),
    ],
    ids=["connected", "refused", "long", "silent", "null", "list", "deep"],
)
def test_servers_that_did_not_connect_are_named(response: bytes, expected: dict[str, str]) -> None:
    """By name, with a bounded text; an answer that nobody understands is told as such."""
    assert mcp_errors(Raw(response)) == expected
