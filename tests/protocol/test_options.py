"""``options`` of hello: every bound of every field, and no secret in any error or text form."""

from typing import Any, get_args

import msgspec
import pytest
from msgspec import UNSET, structs

from protocol.codec import decode_client
from protocol.codes import ErrorCode
from protocol.errors import ClientError
from protocol.frames import Hello
from protocol.options import UNSUPPORTED_OPTIONS, Agent, Credentials, McpHttp, PermissionMode, SessionOptions

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


def rules(count: int) -> list[str]:
    return [f"mcp__acme__tool{number}" for number in range(count)]


SECRETS = ("oauth_token", "api_key", "auth_token")
PLAIN_AGENT = {"description": "d", "prompt": "p"}
PROMPTS = ["x", "é" * 262144, "a\nb\n\x1b"]
NOT_PROMPTS = ["", "a" * 262145, "a\x00", "\x00", "a\x00\n", None, ["x"]]
RULES = ["Bash", "Bash(git log:*)", "mcp__acme__*", "*", "_x", "Read(/tmp/ünïcode ☃)", "A(" + "x" * 509 + ")", "A()"]
NOT_RULES: list[Any] = [
    rules(257), None, "Bash", [None], [7],
    *([value] for value in ("", "-x", "1x", "Bash(", "Bash)", "Bash(a)b", "Bash(a\nb)", "Bash\n", "Bash(a)\n",
                            "Bash(\x00)", " Bash", "a" * 513)),
]  # fmt: skip

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
    ],
    "mcp_servers": [
        {},
        {f"s_-{number}": {"type": "http", "url": URL} for number in range(32)},
        server(headers={}),
        server(headers={f"X-{number}": "v" for number in range(64)}),
        server(headers={"!#$%&'*+.^_`|~-": "é" * 8192, "a" * 128: ""}),
        server(url="http://" + "a" * 2041),
    ],
    "permission_timeout_s": [0.001, 1, 86400],
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
        *({name: PLAIN_AGENT} for name in ("", "a" * 65, "a b", "a\n", "a/b", "é")),
        {f"a{number}": PLAIN_AGENT for number in range(65)},
        {"a": {"description": "d"}}, {"a": {"prompt": "p"}}, {"a": None}, [],
        *(agent(**{name: value}) for name, value in (
            ("description", ""), ("description", "d" * 4097), ("prompt", ""), ("prompt", "\x00"),
            ("prompt", "p" * 262145), ("tools", rules(257)), ("tools", ["Bash\n"]), ("disallowedTools", [""]),
            ("model", "-x"), ("mcpServers", {}), ("permissionMode", "plan"), ("hooks", {}))),
    ],
    "mcp_servers": [
        *({name: {"type": "http", "url": URL}} for name in ("", "a" * 65, "a b", "a\n", "a.b")),
        {f"s{number}": {"type": "http", "url": URL} for number in range(33)},
        {"a": {}}, {"a": {"type": "http"}}, {"a": {"type": "stdio", "command": "sh"}},
        {"a": {"type": "sse", "url": URL}}, server(command="sh"),
        *(server(url=url) for url in ("file:///etc/passwd", URL + "\n", "https://a b/", "http://" + "a" * 2042)),
        *(server(headers={name: "v"}) for name in ("", "X Y", "X:", "X\n", "é", "a" * 129)),
        *(server(headers={"X": value}) for value in ("a\r\nY: b", "a\n", "\x00", "v" * 8193, 1)),
        server(headers={f"X-{number}": "v" for number in range(65)}),
    ],
    "permission_timeout_s": [0, -1, 86401, "1", None],
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


@pytest.mark.parametrize("name", sorted(UNSUPPORTED_OPTIONS))
def test_an_option_that_is_not_built_is_refused_as_such(name: str) -> None:
    """An option that only the protocol names is told apart from a mistake in spelling."""
    error = refusal({name: True})
    assert error.code is ErrorCode.BAD_OPTIONS
    assert error.message == f"{name}: not supported by this version - at `$.options`"


def test_a_misspelt_option_is_named() -> None:
    """An unknown key is refused by its name, at any depth, also where an unbuilt option has that name elsewhere."""
    error = refusal({"modell": "sonnet"})
    assert (error.code, error.message) == (
        ErrorCode.BAD_OPTIONS,
        "Object contains unknown field `modell` - at `$.options`",
    )
    assert "not supported" not in refusal({"agents": agent(effort="high")}).message
    assert "`$.options.agents[...]`" in refusal({"agents": agent(effort="high")}).message


def test_options_that_are_no_object_are_bad_options() -> None:
    """A list or a text in place of the options is refused by the path of the options."""
    values: list[Any] = [[], "x", 7, None]
    for value in values:
        error = refusal(value)
        assert error.code is ErrorCode.BAD_OPTIONS
        assert "`$.options`" in error.message


def test_an_mcp_server_without_a_type_is_http() -> None:
    """There is one kind, so a server without ``type`` is of that kind, and the CLI is told so."""
    options = decode({"mcp_servers": {"acme": {"url": URL}}})
    assert options.mcp_servers == {"acme": McpHttp(URL)}


def test_a_supported_option_is_not_listed_as_unsupported() -> None:
    """An option is built or not, never both."""
    assert not UNSUPPORTED_OPTIONS & set(SessionOptions.__struct_fields__)


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
    """The URL is shown, what authorizes is not."""
    text = repr(McpHttp(URL, {"Authorization": CANARY}))
    assert CANARY not in text
    assert URL in text


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
