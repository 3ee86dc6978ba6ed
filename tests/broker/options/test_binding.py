"""What is bound to the lines that make a warm process a tenant's, and that tell a live one what changed."""

import json
from typing import Any

import msgspec
import pytest

from broker.options.binding import Spawned, Step, burst, credential_steps, expected_key_source
from broker.options.bound import Bound
from protocol.controls import HookMatcher, Initialize
from protocol.json_schema import JsonSchema
from protocol.mcp import McpHttp, McpSdk, McpServer, McpStdio
from protocol.options import Agent, Credentials, Permissions, SessionOptions, Settings

CANARY = "sk-canary-000000000000"
MCP: dict[str, McpServer] = {"acme": McpHttp("https://mcp.example.com/", {"Authorization": "Bearer x"})}
ACME = {"type": "http", "url": "https://mcp.example.com/", "headers": {"Authorization": "Bearer x"}}
SPAWNED = Spawned("sonnet", 5.0, {})
URL = "https://api.example.com"
EVERYTHING = SessionOptions(
    credentials=Credentials(oauth_token="tok", base_url=URL),
    model="opus",
    max_thinking_tokens=0,
    max_output_tokens=100,
    betas=["beta-1", "beta-2"],
    effort="high",
    system_prompt="You are a pirate.",
    append_system_prompt="Arr.",
    agents={"reviewer": Agent("d", "p", maxTurns=3)},
    json_schema=msgspec.convert({"type": "object"}, JsonSchema),
    permission_mode="plan",
    allowed_tools=["Read"],
    disallowed_tools=["Bash(rm:*)"],
    add_dirs=["/srv/a"],
    settings=Settings(Permissions(allow=["Grep", "Read"], ask=["Bash"]), outputStyle="Explanatory"),
    mcp_servers=MCP,
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
    return requests(burst(made, SPAWNED, frozenset(names)))


def settings(**given: Any) -> dict[str, Any]:
    return {"subtype": "apply_flag_settings", "settings": given}


# -- the whole burst -------------------------------------------------------------------------------------------------


def test_without_options_only_initialize_is_sent() -> None:
    """A process that nobody asked anything of still needs its one ``initialize``."""
    assert requests(burst(Bound(), SPAWNED)) == [("initialize", {"subtype": "initialize"})]


def test_every_option_in_its_order() -> None:
    """The credential comes first, since a model may be checked with it; MCP servers last, since the CLI then waits."""
    steps = burst(bound(EVERYTHING), SPAWNED)
    assert requests(steps) == [
        ("credentials", {"CLAUDE_CODE_OAUTH_TOKEN": "tok"}),
        (
            "credentials, max_output_tokens, betas, mcp_servers, allowed_tools, disallowed_tools, add_dirs, settings, "
            "effort",
            settings(
                env={
                    "ANTHROPIC_BASE_URL": URL,
                    "CLAUDE_CODE_MAX_OUTPUT_TOKENS": "100",
                    "ANTHROPIC_BETAS": "beta-1,beta-2",
                    "MCP_TIMEOUT": "5000",
                },
                permissions={
                    "allow": ["Read", "Grep"],
                    "deny": ["Bash(rm:*)"],
                    "ask": ["Bash"],
                    "additionalDirectories": ["/srv/a"],
                },
                effortLevel="high",
                outputStyle="Explanatory",
            ),
        ),
        (
            "initialize",
            {
                "subtype": "initialize",
                "systemPrompt": ["You are a pirate."],
                "appendSystemPrompt": "Arr.",
                "agents": {"reviewer": {"description": "d", "prompt": "p", "maxTurns": 3}},
                "jsonSchema": {"type": "object"},
            },
        ),
        ("model", {"subtype": "set_model", "model": "opus"}),
        ("permission_mode", {"subtype": "set_permission_mode", "mode": "plan"}),
        ("max_thinking_tokens", {"subtype": "set_max_thinking_tokens", "max_thinking_tokens": 0}),
        ("mcp_servers", {"subtype": "mcp_set_servers", "servers": {"acme": ACME}}),
    ]
    assert [step.gates for step in steps] == ["welcome"] * 6 + ["message"]
    assert [step.request_id is None for step in steps] == [True] + [False] * 6
    assert len({step.request_id for step in steps}) == 7


def test_ids_of_two_binds_differ() -> None:
    """Answers of different binds cannot be mixed up, and an id names its option."""
    first, second = burst(Bound(), SPAWNED), burst(Bound(), SPAWNED)
    assert first[0].request_id != second[0].request_id
    assert str(first[0].request_id).endswith("-initialize")


def test_the_profiles_own_model_is_not_set_again() -> None:
    """The process was started with it; setting it costs an API call."""
    assert [option for option, _ in requests(burst(bound(SessionOptions(model="sonnet")), SPAWNED))] == ["initialize"]


@pytest.mark.parametrize(
    ("options", "name", "given"),
    [
        (SessionOptions(allowed_tools=[]), "allowed_tools", {"permissions": {"allow": []}}),
        (SessionOptions(disallowed_tools=["Bash"]), "disallowed_tools", {"permissions": {"deny": ["Bash"]}}),
        (SessionOptions(add_dirs=["/srv"]), "add_dirs", {"permissions": {"additionalDirectories": ["/srv"]}}),
        (SessionOptions(effort="low"), "effort", {"effortLevel": "low"}),
        (SessionOptions(settings=Settings(outputStyle="Learning")), "settings", {"outputStyle": "Learning"}),
        (SessionOptions(max_output_tokens=1), "max_output_tokens", {"env": {"CLAUDE_CODE_MAX_OUTPUT_TOKENS": "1"}}),
        (SessionOptions(betas=["b"]), "betas", {"env": {"ANTHROPIC_BETAS": "b"}}),
        (SessionOptions(credentials=Credentials(api_key="k")), "credentials", {"env": {"ANTHROPIC_API_KEY": "k"}}),
    ],
)
def test_settings_name_the_options_that_a_refusal_is_about(
    options: SessionOptions, name: str, given: dict[str, Any]
) -> None:
    """One ``apply_flag_settings`` carries what needs it, under the names of the options in it."""
    assert requests(burst(bound(options), SPAWNED))[0] == (name, settings(**given))


def test_credentials_by_kind() -> None:
    """An OAuth token goes by the environment line, everything else by the settings' environment."""
    line, env = credential_steps(Credentials(oauth_token="o", base_url=URL))
    assert line is not None
    assert json.loads(line) == {
        "type": "update_environment_variables",
        "variables": {"CLAUDE_CODE_OAUTH_TOKEN": "o"},
    }
    assert env == {"ANTHROPIC_BASE_URL": URL}
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
    assert CANARY not in repr(burst(made, SPAWNED))
    assert CANARY in str([step.line for step in burst(made, SPAWNED)])


# -- a client's own initialize ---------------------------------------------------------------------------------------


def test_the_burst_leaves_the_clients_initialize_to_the_client() -> None:
    """Until it has come none is sent; a process that is restored later gets it with the rest."""
    made = bound(SessionOptions(initialize="client"))
    assert burst(made, SPAWNED) == []
    hook = HookMatcher(["h1"], timeout=5)
    made.set_initialize(Initialize({"PreToolUse": [hook], "Stop": [hook]}, ["own"], systemPrompt="Be brief."))
    assert requests(burst(made, SPAWNED)) == [
        ("mcp_servers", settings(env={"MCP_TIMEOUT": "5000"})),
        (
            "initialize",
            {
                "subtype": "initialize",
                "systemPrompt": ["Be brief."],
                "hooks": {
                    "PreToolUse": [{"hookCallbackIds": ["h1"], "timeout": 15.0, "onFailure": "block"}],
                    "Stop": [{"hookCallbackIds": ["h1"], "timeout": 15.0}],
                },
            },
        ),
        ("mcp_servers", {"subtype": "mcp_set_servers", "servers": {"own": {"type": "sdk", "name": "own"}}}),
    ]


# -- MCP servers -----------------------------------------------------------------------------------------------------


def test_the_operators_servers_are_always_among_them() -> None:
    """The set is replaced as a whole, so it holds the operator's, which win over the tenant's of the same name."""
    operator: dict[str, McpServer] = {"acme": McpStdio("/usr/bin/tool"), "docs": McpSdk()}
    steps = burst(bound(SessionOptions(mcp_servers=MCP)), Spawned("sonnet", 2.5, operator))
    env, _, servers = [payload for _, payload in requests(steps)]
    assert env == settings(env={"MCP_TIMEOUT": "2500"})
    assert servers["servers"] == {
        "acme": {"type": "stdio", "command": "/usr/bin/tool", "args": [], "env": {}},
        "docs": {"type": "sdk", "name": "docs"},
    }
    assert [option for option, _ in requests(burst(Bound(), Spawned("sonnet", 1, operator)))][-1] == "mcp_servers"


def test_servers_that_are_taken_away_are_told() -> None:
    """An empty set replaces the old one on a live process; a fresh one needs no line for it."""
    made = bound(SessionOptions(mcp_servers={}))
    assert changed(made, "mcp_servers") == [("mcp_servers", {"subtype": "mcp_set_servers", "servers": {}})]
    assert [option for option, _ in requests(burst(made, SPAWNED))] == ["initialize"]


def test_servers_that_were_switched_off_stay_off() -> None:
    """A restored process is told so behind the servers; nobody waits for its answer, and a server that is gone is not
    named."""
    made = bound(SessionOptions(mcp_servers=MCP))
    made.mcp_off = frozenset({"acme", "gone"})
    steps = burst(made, SPAWNED)
    assert requests(steps)[-1] == ("mcp_off", {"subtype": "mcp_toggle", "serverName": "acme", "enabled": False})
    assert [step.gates for step in steps[-2:]] == ["message", "nothing"]


# -- what is told to a live process ----------------------------------------------------------------------------------


def test_only_what_changed_is_sent_to_a_live_process() -> None:
    """One line per change, no ``initialize``, and nothing when nothing changed."""
    made = bound(EVERYTHING)
    assert changed(made) == []
    assert changed(made, "model") == [("model", {"subtype": "set_model", "model": "opus"})]
    assert changed(made, "effort") == [("effort", settings(effortLevel="high"))]
    assert [option for option, _ in changed(made, "permission_mode", "max_thinking_tokens")] == [
        "permission_mode", "max_thinking_tokens",
    ]  # fmt: skip


def test_the_profiles_own_model_is_set_again_on_a_live_process() -> None:
    """It may run another one by now."""
    assert changed(bound(SessionOptions(model="sonnet")), "model")[0][1]["model"] == "sonnet"


def test_one_kind_of_credential_clears_the_others() -> None:
    """A rotation leaves no second credential behind that the CLI could prefer: empty texts, since null is a value."""
    made = bound(SessionOptions(credentials=Credentials(api_key="k")))
    assert changed(made, "credentials") == [
        ("credentials", {"CLAUDE_CODE_OAUTH_TOKEN": ""}),
        ("credentials", settings(env={"ANTHROPIC_API_KEY": "k", "ANTHROPIC_AUTH_TOKEN": ""})),
    ]
    made.set_credentials(Credentials(oauth_token="o"))
    assert changed(made, "credentials") == [
        ("credentials", {"CLAUDE_CODE_OAUTH_TOKEN": "o"}),
        ("credentials", settings(env={"ANTHROPIC_API_KEY": "", "ANTHROPIC_AUTH_TOKEN": ""})),
    ]


def test_another_credentials_address_is_left() -> None:
    """A credential without an address goes to the operator's, never to that of the credential before it."""
    made = Bound("https://operator.example")
    made.merge(SessionOptions(credentials=Credentials(api_key="k")), with_initialize=True)
    assert "ANTHROPIC_BASE_URL" not in str(changed(made, "credentials"))
    made.set_credentials(Credentials(api_key="k", base_url=URL))
    assert changed(made, "credentials")[1][1]["settings"]["env"]["ANTHROPIC_BASE_URL"] == URL
    made.set_credentials(Credentials(api_key="k2"))
    assert changed(made, "credentials")[1][1]["settings"]["env"]["ANTHROPIC_BASE_URL"] == "https://operator.example"
    assert "ANTHROPIC_BASE_URL" not in str(requests(burst(made, SPAWNED))), "a new process has the operator's already"


def test_the_environment_is_always_sent_whole() -> None:
    """A new cap does not take the key away, nor a new key the cap."""
    made = bound(SessionOptions(credentials=Credentials(api_key="k"), max_output_tokens=1))
    env = {"ANTHROPIC_API_KEY": "k", "ANTHROPIC_AUTH_TOKEN": "", "CLAUDE_CODE_MAX_OUTPUT_TOKENS": "1"}
    assert changed(made, "max_output_tokens") == [("max_output_tokens", settings(env=env))]
    assert changed(made, "credentials")[1] == ("credentials", settings(env=env))
    assert changed(bound(SessionOptions(max_output_tokens=1)), "credentials") == []


def test_permission_rules_are_always_sent_whole() -> None:
    """The CLI replaces ``permissions`` as a whole: a new deny rule keeps the allowed ones."""
    made = bound(SessionOptions(allowed_tools=["Read"], disallowed_tools=["Bash"]))
    rules = settings(permissions={"allow": ["Read"], "deny": ["Bash"]})
    assert changed(made, "disallowed_tools") == [("allowed_tools, disallowed_tools", rules)]
    assert changed(made, "settings") == [("allowed_tools, disallowed_tools, settings", rules)]


OTHER = SessionOptions(
    credentials=Credentials(api_key="k"),
    model="haiku",
    max_thinking_tokens=9,
    max_output_tokens=9,
    permission_mode="default",
    allowed_tools=["Bash"],
    effort="low",
    mcp_servers={},
    settings=Settings(outputStyle="Learning"),
)


def test_every_step_can_be_taken_back_and_told_again() -> None:
    """A step names the fields that it was made of and the options that tell them: refused, all of them go back."""
    made = bound(EVERYTHING)
    before = made.copy()
    names = made.merge(OTHER, with_initialize=False)
    steps = burst(made, SPAWNED, names)
    for step in steps:
        made.take_back(step.fields, before)
    assert made == before
    told = frozenset[str]().union(*(step.names for step in steps))
    assert told == names
    assert {step.fields for step in burst(made, SPAWNED, told)} == {step.fields for step in steps}


def test_a_refusal_blames_the_options_of_the_key_that_it_names() -> None:
    """Where the CLI names none, all that were in the request."""
    step = burst(bound(EVERYTHING), SPAWNED)[1]
    text = "apply_flag_settings: nothing was applied. Fix these invalid settings: permissions"
    assert step.refusal(text) == f"allowed_tools, disallowed_tools, add_dirs, settings: {text}"
    assert step.refusal("invalid: outputStyle, effortLevel").startswith("effort, settings: ")
    assert step.refusal("no").startswith("credentials, max_output_tokens, betas, mcp_servers, allowed_tools")
    assert len(step.refusal("x" * 10_000)) < 500
    assert burst(Bound(), SPAWNED)[0].refusal("no") == "initialize: no"


def test_what_goes_back_to_nothing_is_told_as_nothing() -> None:
    """Nobody had set an effort, a style or rules before: the CLI is told that there are none again."""
    names = ("effort", "output_style", "settings", "max_output_tokens", "betas", "max_thinking_tokens")
    assert changed(Bound(), *names) == [
        (
            "max_output_tokens, betas, settings, effort",
            settings(
                env={"CLAUDE_CODE_MAX_OUTPUT_TOKENS": "", "ANTHROPIC_BETAS": ""},
                permissions={},
                effortLevel=None,
                outputStyle=None,
            ),
        ),
        ("max_thinking_tokens", {"subtype": "set_max_thinking_tokens", "max_thinking_tokens": None}),
    ]


def test_the_models_of_the_policy_bind_the_agent_too() -> None:
    """The CLI is told them once, with the profile's own: a subagent on another model runs on the session's."""
    spawned = Spawned("sonnet", 5.0, {}, ["haiku"])
    told = [request for _, request in requests(burst(Bound(), spawned)) if request["subtype"] == "apply_flag_settings"]
    assert [request["settings"] for request in told] == [{"availableModels": ["haiku", "sonnet"]}]
    assert "availableModels" not in str(requests(burst(Bound(), SPAWNED)))
