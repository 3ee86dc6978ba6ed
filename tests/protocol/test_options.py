"""``options`` of hello: every bound of every field, and no secret in any error or text form."""

from typing import Any, get_args

import msgspec
import pytest
from msgspec import UNSET, structs

from protocol.codec import decode_client
from protocol.codes import ErrorCode
from protocol.errors import ClientError
from protocol.frames import Hello
from protocol.json_schema import JsonSchema
from protocol.mcp import McpHttp, McpSdk, McpSse, McpStdio
from protocol.options import SPAWN_OPTIONS, Agent, Credentials, Effort, PermissionMode, SessionOptions

CANARY = "sk-canary-000000000000"
URL = "https://mcp.example.com/"


def decode(options: Any) -> SessionOptions:
    frame = decode_client(msgspec.json.encode({"type": "broker.hello", "options": options}))
    assert isinstance(frame, Hello)
    return frame.options


def refusal(options: Any) -> ClientError:
    with pytest.raises(ClientError) as caught:
        decode(options)
    return caught.value


def agent(**fields: Any) -> dict[str, Any]:
    return {"reviewer": PLAIN_AGENT | fields}


def server(**fields: Any) -> dict[str, Any]:
    return {"acme": {"type": "http", "url": URL, **fields}}


def stdio(**fields: Any) -> dict[str, Any]:
    return {"acme": {"type": "stdio", "command": "mcp-files", **fields}}


def rules(count: int) -> list[str]:
    return [f"mcp__acme__tool{number}" for number in range(count)]


def permissions(**fields: Any) -> dict[str, Any]:
    return {"permissions": fields}


def words(count: int) -> dict[str, Any]:
    """A schema of as many bytes as braces and quotes around ``count`` letters make."""
    return {"type": "object", "description": "d" * count}


SECRETS = ("oauth_token", "api_key", "auth_token")
PLAIN_AGENT = {"description": "d", "prompt": "p"}
PROMPTS = ["x", "é" * 262144, "a\nb\n\x1b"]
NOT_PROMPTS = ["", "a" * 262145, "a\x00", "\x00", "a\x00\n", None, ["x"]]
RULES = ["Bash", "Bash(git log:*)", "mcp__acme__*", "*", "_x", "Read(/tmp/ünïcode ☃)", "A(" + "x" * 509 + ")", "A()"]
NOT_RULES: list[Any] = [
    rules(257), None, "Bash", {}, [None], [7],
    *([value] for value in ("", "-x", "1x", "Bash(", "Bash)", "Bash(a)b", "Bash(a\nb)", "Bash\n", "Bash(a)\n",
                            "Bash(\x00)", " Bash", "a" * 513)),
]  # fmt: skip

DIRECTORIES = [[], ["/"], ["/a b/ü,-x/../\u2028"], ["/" + "a" * 4095], ["/a"] * 16]
NOT_DIRECTORIES: list[Any] = [
    None, "/a", ["/a"] * 17, [None], [["/a"]],
    *([value] for value in ("", "a", "./a", "~/a", "-/a", "--add-dir=/a", "C:\\a", "/a\n", "/a\x00", "/\x7f")),
    ["/" + "a" * 4096],
]  # fmt: skip
NOT_NAMES = ("", "a" * 65, "a b", "a\n", "a/b", "a.b", "é", "a\x00", "__proto__")
SCHEMA = {"type": "object", "properties": {"answer": {"type": "integer"}}, "required": ["answer"]}

GOOD: dict[str, list[Any]] = {
    "credentials": [
        *({kind: "!~" + "a" * 16382} for kind in SECRETS),
        {"api_key": "k", "base_url": "http://" + "a" * 2041},
    ],
    "model": ["sonnet", "claude-sonnet-5-5", "a" * 128, "opus[1m]", "us.anthropic/claude:v1@x"],
    "max_thinking_tokens": [0, 1_000_000],
    "max_output_tokens": [1, 1_000_000],
    "system_prompt": PROMPTS,
    "append_system_prompt": PROMPTS,
    "permission_mode": list(get_args(PermissionMode)),
    "allowed_tools": [[], RULES, rules(256)],
    "disallowed_tools": [[], RULES, rules(256)],
    "agents": [
        {},
        {"a" * 64: PLAIN_AGENT},
        {f"a{number}": PLAIN_AGENT for number in range(64)},
        agent(description="d" * 4096, prompt="p" * 262144, tools=rules(256), disallowedTools=[], model="opus"),
        agent(permissionMode="plan", maxTurns=10_000, mcpServers=["acme", server(headers={"X": "y"})]),
        agent(mcpServers=[stdio()] * 32, maxTurns=1),
    ],
    "json_schema": [{}, SCHEMA, words(65000)],
    "effort": list(get_args(Effort)),
    "settings": [
        {},
        {"permissions": {}},
        {"effortLevel": "max"},
        {"outputStyle": "Explanatory"},
        {"outputStyle": "a" * 64},
        *(permissions(**{name: RULES}) for name in ("allow", "deny", "ask")),
        *(permissions(defaultMode=mode) for mode in get_args(PermissionMode)),
        *(permissions(additionalDirectories=value) for value in DIRECTORIES),
    ],
    "mcp_servers": [
        {},
        {f"s_-{number}": {"type": "http", "url": URL} for number in range(32)},
        {"a": {"type": "sse", "url": URL, "headers": {"Authorization": "Bearer x"}}},
        {"a": {"type": "sdk"}},
        stdio(),
        stdio(args=[], env={}),
        stdio(command="c" * 4096, args=["", "-x", "a\nb\u2028", "a" * 4096]),
        stdio(args=["a"] * 64, env={"_" + "A" * 127: "a\n" * 2048, "a": ""}),
        stdio(env={f"A{number}": "" for number in range(64)}),
        server(headers={}),
        server(headers={f"X-{number}": "v" for number in range(64)}),
        server(headers={"!#$%&'*+.^_`|~-": "é" * 8192, "a" * 128: ""}),
        server(url="http://" + "a" * 2041),
    ],
    "tools": [[], ["default"], ["Bash", "Read"], ["A" + "a_9" * 21], ["Bash"] * 64],
    "fallback_model": ["haiku", "a" * 128, "claude-haiku-5-5,haiku", ",".join(["a" * 128] * 8), "opus[1m],sonnet"],
    "add_dirs": DIRECTORIES,
    "plugin_dirs": DIRECTORIES,
    "setting_sources": [[], ["user"], ["user", "project", "local"]],
    "max_turns": [1, 10_000],
    "max_budget_usd": [0.000001, 1, 1_000_000],
    "debug": [
        "",
        "api",
        "api,!statsig",
        "!1p:x.y-z_9",
        "a" * 256,
        {},
        {"filter": ""},
        {"filter": "api", "frames": False},
    ],
    "verbose": [True, False],
    "ide": [True, False],
    "betas": [[], ["context-1m-2025-08-07"], ["a" * 64], ["a"] * 16],
    "permission_timeout_s": [0.001, 1, 86400],
    "lazy": [True, False],
    "initialize": ["broker", "client"],
}

BAD: dict[str, list[Any]] = {
    "credentials": [
        *({kind: value} for kind in SECRETS
          for value in ("", "a" * 16385, "a b", "a\n", "\ta", "a\x00", "a\x7f", "é", None, 7)),
        *({"oauth_token": "a", "base_url": value} for value in (
            "", "ftp://a/", "HTTP://a/", "https://", "https://a b/", "https://a\n", "https://a/\x00", "https://a/\x7f",
            "https://" + "a" * 2041, "//a/", "javascript:1", "https://a/\u2028")),
        {}, {"base_url": "https://api.example.com"}, {"oauth_token": "a", "api_key": "b"},
        {"oauth_token": "a", "api_key": "b", "auth_token": "c"}, {"oauth_token": "a", "more": 1},
    ],
    "model": ["", "a" * 129, "-x", "--model=x", "a b", "a\n", "a\x00", "é", "[1m]", None],
    "max_thinking_tokens": [-1, 1_000_001, 0.5, "1", True, None],
    "max_output_tokens": [0, 1_000_001, 1.5, "1", None],
    "system_prompt": NOT_PROMPTS,
    "append_system_prompt": NOT_PROMPTS,
    "permission_mode": ["", "Default", "default\n", "yolo", "x" * 600, None],
    "allowed_tools": NOT_RULES,
    "disallowed_tools": NOT_RULES,
    "agents": [
        *({name: PLAIN_AGENT} for name in NOT_NAMES),
        {f"a{number}": PLAIN_AGENT for number in range(65)},
        {"a": {"description": "d"}}, {"a": {"prompt": "p"}}, {"a": None}, [],
        *(agent(**{name: value}) for name, value in (
            ("description", ""), ("description", "d" * 4097), ("prompt", ""), ("prompt", "\x00"),
            ("prompt", "p" * 262145), ("tools", rules(257)), ("tools", ["Bash\n"]), ("disallowedTools", [""]),
            ("model", "-x"), ("mcpServers", {}), ("mcpServers", ["a b"]), ("mcpServers", [{"a": {}}]),
            ("mcpServers", ["a"] * 33), ("mcpServers", [{"__proto__": {"type": "sdk"}}]), ("permissionMode", "yolo"),
            ("maxTurns", 0), ("maxTurns", 10_001), ("maxTurns", "3"), ("hooks", {}), ("effort", "high"))),
    ],
    "json_schema": [
        None, [], "{}", True, {"type": "array"}, {"type": ["object"]}, {"more": 1}, {"properties": {"a": {"x-a": 1}}},
        words(65536),
    ],
    "effort": ["", "ultra", "High", "high\n", 5, None],
    "settings": [
        None, [], {"env": {}}, {"hooks": {}}, {"apiKeyHelper": "sh"}, {"effortLevel": 3}, {"permissions": []},
        *({"outputStyle": value} for value in ("", "-x", "a" * 65, "a\n", "a/b", None)),
        *(permissions(**{name: value}) for name in ("allow", "deny", "ask") for value in NOT_RULES),
        *(permissions(additionalDirectories=value) for value in NOT_DIRECTORIES),
        permissions(defaultMode="yolo"), permissions(disableBypassPermissionsMode="disable"),
    ],
    "mcp_servers": [
        *({name: {"type": "http", "url": URL}} for name in NOT_NAMES),
        {f"s{number}": {"type": "http", "url": URL} for number in range(33)},
        *({"a": {"type": kind}} for kind in ("http", "sse", "stdio", "ws", "", None)), {"a": {}}, {"a": {"url": URL}},
        {"a": {"type": "sdk", "url": URL}}, {"a": {"type": "sse", "url": URL, "command": "sh"}}, server(command="sh"),
        server(headersHelper="sh"), server(tools=[]), stdio(url=URL), stdio(headers={}), stdio(cwd="/"),
        *(stdio(command=value) for value in ("", "a\n", "a\x00", "c" * 4097, ["sh"], None)),
        *(stdio(args=value) for value in ("-c", ["a"] * 65, ["a" * 4097], ["a\x00"], [1], None)),
        *(stdio(env={name: "v"}) for name in ("", "1A", "A-B", "A=B", "A\n", "A" * 129, "__proto__")),
        *(stdio(env={"A": value}) for value in ("a\x00", "a" * 4097, 1, None)),
        stdio(env={f"A{number}": "" for number in range(65)}),
        *(server(url=url) for url in ("file:///etc/passwd", URL + "\n", "https://a b/", "http://" + "a" * 2042)),
        *(server(headers={name: "v"}) for name in ("", "X Y", "X:", "X\n", "é", "a" * 129, "__proto__")),
        *(server(headers={"X": value}) for value in ("a\r\nY: b", "a\n", "\x00", "v" * 8193, 1)),
        server(headers={f"X-{number}": "v" for number in range(65)}),
    ],
    "tools": [
        None, "Bash", ["Bash"] * 65,
        *([value] for value in ("", "-x", "--tools", "a,b", "Bash\n", "Bash(ls)", "a" * 65, 7, "é")),
    ],
    "fallback_model": [
        "", "-x", ",", "haiku,", ",haiku", "haiku,,opus", "haiku, opus", "haiku,-x", "haiku\n", "a\x00", "a" * 129,
        ",".join(["a"] * 9), ["haiku"], None,
    ],
    "add_dirs": NOT_DIRECTORIES,
    "plugin_dirs": NOT_DIRECTORIES,
    "setting_sources": [None, "user", ["User"], ["user"] * 4, ["policy"], ["user,local"], [""], [7]],
    "max_turns": [0, -1, 10_001, 2.5, "3", True, None],
    "max_budget_usd": [0, -1, 1_000_001, "1", True, None],
    "debug": [
        None, True, 7, [], "-x", "--debug-file=/a", "a b", "api\n", "a\x00", "a/b", "a=b", "a" * 257, {"more": 1},
        {"filter": "-x"}, {"filter": None}, {"frames": 1}, {"frames": None},
    ],
    "verbose": [None, 1, "true", {}],
    "ide": [None, 0, "no", []],
    "betas": [None, "a", ["a"] * 17, [""], ["-a"], ["A"], ["a,b"], ["a b"], ["a\n"], ["a" * 65], [7]],
    "permission_timeout_s": [0, -1, 86401, "1", None],
    "lazy": [None, 1, "yes"],
    "initialize": [None, "", "Client", "client\n", True, {}],
}  # fmt: skip


@pytest.mark.parametrize("name", SessionOptions.__struct_fields__)
def test_a_value_at_its_bound_is_accepted(name: str) -> None:
    """The longest, shortest and oddest values that are allowed are decoded, and nothing else is set."""
    for value in GOOD[name]:
        assert list(decode({name: value}).given()) == [name]


@pytest.mark.parametrize("name", SessionOptions.__struct_fields__)
def test_a_value_beyond_its_bound_is_refused_by_its_path(name: str) -> None:
    """One more, a control character, a newline at the end, a wrong type: ``bad_options`` naming the JSON path."""
    for value in BAD[name]:
        error = refusal({name: value})
        assert error.code is ErrorCode.BAD_OPTIONS
        assert f"`$.options.{name}" in error.message, value
        assert len(error.message) < 600


def test_a_misspelt_option_is_named() -> None:
    """An unknown key is refused by its name, at any depth, also where an option has that name elsewhere."""
    error = refusal({"modell": "sonnet"})
    assert (error.code, error.message) == (
        ErrorCode.BAD_OPTIONS,
        "Object contains unknown field `modell` - at `$.options`",
    )
    nested: list[tuple[Any, str, str]] = [
        ({"agents": agent(effort="high")}, "effort", "agents[...]"),
        ({"agents": agent(mcpServers=[server(cwd="/")])}, "cwd", "agents[...].mcpServers[0][...]"),
        ({"settings": {"model": "opus"}}, "model", "settings"),
        ({"settings": permissions(tools=[])}, "tools", "settings.permissions"),
        ({"mcp_servers": server(timeout=1)}, "timeout", "mcp_servers[...]"),
        ({"debug": {"file": "/a"}}, "file", "debug"),
        ({"json_schema": {"properties": {"a": {"items": {"typ": "x"}}}}}, "typ", "json_schema.properties[...].items"),
    ]
    for options, key, path in nested:
        assert refusal(options).message == f"Object contains unknown field `{key}` - at `$.options.{path}`"


def test_options_that_are_no_object_are_bad_options() -> None:
    """A list or a text in place of the options is refused by the path of the options."""
    values: list[Any] = [[], "x", 7, None]
    for value in values:
        error = refusal(value)
        assert error.code is ErrorCode.BAD_OPTIONS
        assert "`$.options`" in error.message


def test_an_mcp_server_is_of_the_kind_it_names() -> None:
    """Each of the four is decoded to its own struct, and without a ``type`` there is no server."""
    given = server() | {"b": {"type": "sse", "url": URL}, "c": stdio()["acme"], "d": {"type": "sdk"}}
    kinds = {"acme": McpHttp(URL), "b": McpSse(URL), "c": McpStdio("mcp-files"), "d": McpSdk()}
    assert decode({"mcp_servers": given}).mcp_servers == kinds
    assert msgspec.json.decode(msgspec.json.encode(kinds)) == given
    assert "`type`" in refusal({"mcp_servers": {"acme": {"url": URL}}}).message


def test_a_schema_goes_out_as_it_came_in() -> None:
    """What the CLI gets of a JSON Schema is what the client gave."""
    found = decode({"json_schema": SCHEMA}).json_schema
    assert isinstance(found, JsonSchema)
    assert msgspec.json.decode(msgspec.json.encode(found)) == SCHEMA


def test_options_of_the_launch_profile_are_options() -> None:
    """What is fixed when a process starts is named as hello names it."""
    assert set(SPAWN_OPTIONS) < set(SessionOptions.__struct_fields__)


# -- secrets ---------------------------------------------------------------------------------------------------------

LEAKY = [
    *({"credentials": {kind: CANARY + end}} for kind in SECRETS for end in ("\n", " ", "\x00", "é")),
    {"credentials": {"oauth_token": CANARY, "api_key": CANARY}},
    {"credentials": {"oauth_token": CANARY, "base_url": CANARY}},
    {"credentials": {"oauth_token": CANARY, "more": CANARY}},
    {"credentials": {"oauth_token": [CANARY]}},
    {"credentials": CANARY},
    {"credentials": {"oauth_token": CANARY}, "model": "-"},
    {"mcp_servers": server(headers={"Authorization": CANARY + "\n"})},
    {"mcp_servers": server(headers={"Authorization": [CANARY]})},
    {"mcp_servers": server(headers={CANARY + " ": "x"})},
    {"mcp_servers": server(url=f"https://user:{CANARY} @a/")},
    {"mcp_servers": stdio(env={"TOKEN": CANARY + "\x00"})},
    {"mcp_servers": stdio(env={CANARY: "x"})},
    {"mcp_servers": stdio(args=["--token", CANARY + "\x00"])},
    {"agents": agent(mcpServers=[server(headers={"Authorization": CANARY + "\n"})])},
    {"json_schema": {"description": [CANARY]}},
    {"json_schema": {"properties": {"a": {"$ref": f"#/{CANARY}"}}}},
    {"system_prompt": CANARY + "\x00"},
    {"agents": agent(prompt=CANARY + "\x00")},
]


def test_an_error_never_shows_a_value() -> None:
    """The message says what is wrong and where, never the credential, header or prompt itself."""
    errors = [refusal(options) for options in LEAKY]
    assert [error for error in errors if CANARY in error.message + str(error) + repr(error)] == []


@pytest.mark.parametrize("kind", SECRETS)
def test_the_text_form_of_credentials_names_the_kind_only(kind: str) -> None:
    """A credential can be logged by mistake without harm, alone or within its options."""
    options = decode({"credentials": {kind: CANARY, "base_url": "https://api.example.com"}})
    assert options.credentials is not UNSET
    assert options.credentials.kind == kind
    assert repr(options.credentials) == f"Credentials({kind}=[redacted])"
    for text in (repr(options), str(options), f"{options.credentials}"):
        assert CANARY not in text


def test_the_text_form_of_an_mcp_server_hides_its_headers() -> None:
    """The URL or the program is shown, what authorizes is not."""
    for made in (McpHttp(URL, {"Authorization": CANARY}), McpSse(URL, {"Authorization": CANARY})):
        assert CANARY not in repr(made)
        assert URL in repr(made)
    text = repr(McpStdio("mcp-files", ["--token", CANARY], {"TOKEN": CANARY}))
    assert CANARY not in text
    assert "mcp-files" in text


def test_credentials_are_counted_however_they_are_made() -> None:
    """The rule of exactly one kind holds for structs that the broker makes too."""
    with pytest.raises(ValueError, match="exactly one"):
        Credentials()
    with pytest.raises(ValueError, match="exactly one"):
        Credentials(oauth_token="a", auth_token="b")
    with pytest.raises(ValueError, match="exactly one"):
        structs.replace(Credentials(oauth_token="a"), api_key="b")


def test_what_is_unset_is_not_encoded() -> None:
    """The CLI gets an agent or a server without the fields that the client left out."""
    assert msgspec.json.decode(msgspec.json.encode(Agent("d", "p"))) == {"description": "d", "prompt": "p"}
    assert msgspec.json.decode(msgspec.json.encode(McpHttp(URL))) == {"type": "http", "url": URL}
