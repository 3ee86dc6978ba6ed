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
    return {"agents": {"reviewer": {"description": "d", "prompt": "p", **fields}}}


def server(**fields: Any) -> dict[str, Any]:
    return {"mcp_servers": {"acme": {"type": "http", "url": URL, **fields}}}


def rules(count: int) -> list[str]:
    return [f"mcp__acme__tool{number}" for number in range(count)]


SECRETS = ("oauth_token", "api_key", "auth_token")
MODELS = ["sonnet", "claude-sonnet-5-5", "a" * 128, "opus[1m]", "us.anthropic/claude:v1@x"]
RULES = ["Bash", "Bash(git log:*)", "mcp__acme__*", "*", "_x", "Read(/tmp/ünïcode ☃)", "A(" + "x" * 509 + ")", "A()"]
NOT_RULES = ["", "-x", "1x", "Bash(", "Bash)", "Bash(a)b", "Bash(a\nb)", "Bash\n", "Bash(a)\n", "Bash(\x00)", " Bash",
             "a" * 513]  # fmt: skip

GOOD = [
    {},
    *({"credentials": {kind: "!~" + "a" * 16382}} for kind in SECRETS),
    {"credentials": {"api_key": "k", "base_url": "http://" + "a" * 2041}},
    *({"model": value} for value in MODELS),
    *({"max_thinking_tokens": value} for value in (0, 1_000_000)),
    *({"max_output_tokens": value} for value in (1, 1_000_000)),
    *(
        {name: value}
        for name in ("system_prompt", "append_system_prompt")
        for value in ("x", "é" * 262144, "a\nb\n\x1b")
    ),
    *({"permission_mode": value} for value in get_args(PermissionMode)),
    *({name: RULES} for name in ("allowed_tools", "disallowed_tools")),
    *({name: rules(256)} for name in ("allowed_tools", "disallowed_tools")),
    {"allowed_tools": []},
    {"agents": {}},
    {"agents": {"a" * 63 + str(number % 10): {"description": "d", "prompt": "p"} for number in range(10)}},
    {"agents": {f"a{number}": {"description": "d", "prompt": "p"} for number in range(64)}},
    agent(description="d" * 4096, prompt="p" * 262144, tools=rules(256), disallowedTools=[], model="opus"),
    {"mcp_servers": {}},
    {"mcp_servers": {f"s_-{number}": {"type": "http", "url": URL} for number in range(32)}},
    server(headers={}),
    server(headers={f"X-{number}": "v" for number in range(64)}),
    server(headers={"!#$%&'*+.^_`|~-": "é" * 8192, "a" * 128: ""}),
    server(url="http://" + "a" * 2041),
    *({"permission_timeout_s": value} for value in (0.001, 1, 86400)),
]

BAD = [
    *(("credentials", {kind: value}) for kind in SECRETS
      for value in ("", "a" * 16385, "a b", "a\n", "\ta", "a\x00", "a\x7f", "é", None, 7)),
    ("credentials", {}),
    ("credentials", {"base_url": "https://api.example.com"}),
    ("credentials", {"oauth_token": "a", "api_key": "b"}),
    ("credentials", {"oauth_token": "a", "api_key": "b", "auth_token": "c"}),
    ("credentials", {"oauth_token": "a", "more": 1}),
    *(("credentials", {"oauth_token": "a", "base_url": value}) for value in (
        "", "ftp://a/", "HTTP://a/", "https://", "https://a b/", "https://a\n", "https://a/\x00", "https://a/\x7f",
        "https://" + "a" * 2041, "//a/", "javascript:1", "https://a/\u2028")),
    *(("model", value) for value in ("", "a" * 129, "-x", "--model=x", "a b", "a\n", "a\x00", "é", "[1m]", None)),
    *(("max_thinking_tokens", value) for value in (-1, 1_000_001, 0.5, "1", True, None)),
    *(("max_output_tokens", value) for value in (0, 1_000_001, 1.5, "1", None)),
    *((name, value) for name in ("system_prompt", "append_system_prompt")
      for value in ("", "a" * 262145, "a\x00", "\x00", None, ["x"])),
    *(("permission_mode", value) for value in ("", "Default", "default\n", "yolo", "x" * 600, None)),
    *((name, [value]) for name in ("allowed_tools", "disallowed_tools") for value in (*NOT_RULES, None, 7)),
    *((name, rules(257)) for name in ("allowed_tools", "disallowed_tools")),
    *(("agents", {name: {"description": "d", "prompt": "p"}}) for name in ("", "a" * 65, "a b", "a\n", "a/b", "é")),
    ("agents", {f"a{number}": {"description": "d", "prompt": "p"} for number in range(65)}),
    ("agents", {"a": {"description": "d"}}),
    ("agents", {"a": {"prompt": "p"}}),
    *(("agents", agent(**fields)["agents"]) for fields in (
        {"description": ""}, {"description": "d" * 4097}, {"prompt": ""}, {"prompt": "\x00"}, {"prompt": "p" * 262145},
        {"tools": rules(257)}, {"tools": ["Bash\n"]}, {"disallowedTools": [""]}, {"model": "-x"},
        {"mcpServers": {}}, {"permissionMode": "plan"}, {"hooks": {}})),
    *(("mcp_servers", {name: {"type": "http", "url": URL}}) for name in ("", "a" * 65, "a b", "a\n", "a.b")),
    ("mcp_servers", {f"s{number}": {"type": "http", "url": URL} for number in range(33)}),
    ("mcp_servers", {"a": {"url": URL}}),
    ("mcp_servers", {"a": {"type": "http"}}),
    ("mcp_servers", {"a": {"type": "stdio", "command": "sh"}}),
    ("mcp_servers", {"a": {"type": "sse", "url": URL}}),
    *(("mcp_servers", server(**fields)["mcp_servers"]) for fields in (
        {"url": "file:///etc/passwd"}, {"url": URL + "\n"}, {"url": "https://a b/"}, {"url": "http://" + "a" * 2042},
        {"command": "sh"}, {"headers": {"X": "a\r\nY: b"}}, {"headers": {"X": "a\n"}}, {"headers": {"X": "\x00"}},
        {"headers": {"X": "v" * 8193}}, {"headers": {"": "v"}}, {"headers": {"X Y": "v"}}, {"headers": {"X:": "v"}},
        {"headers": {"X\n": "v"}}, {"headers": {"é": "v"}}, {"headers": {"a" * 129: "v"}}, {"headers": {"X": 1}},
        {"headers": {f"X-{number}": "v" for number in range(65)}})),
    *(("permission_timeout_s", value) for value in (0, -1, 86401, "1", None)),
]  # fmt: skip


@pytest.mark.parametrize("options", GOOD, ids=lambda options: str(options)[:60])
def test_a_value_at_its_bound_is_accepted(options: dict[str, Any]) -> None:
    """The longest, shortest and oddest values that are allowed are decoded, and nothing else is set."""
    assert set(decode(options).given()) == set(options)


@pytest.mark.parametrize(("name", "value"), BAD, ids=lambda value: str(value)[:60])
def test_a_value_beyond_its_bound_is_refused_by_its_path(name: str, value: Any) -> None:
    """One more, a control character, a newline at the end, a wrong type: ``bad_options`` naming the JSON path."""
    error = refusal({name: value})
    assert error.code is ErrorCode.BAD_OPTIONS
    assert f"`$.options.{name}" in error.message
    assert len(error.message) < 600


def test_every_option_has_a_row_on_both_sides() -> None:
    """No option of the struct was forgotten in the two tables."""
    assert {name for options in GOOD for name in options} == set(SessionOptions.__struct_fields__)
    assert {name for name, _ in BAD} == set(SessionOptions.__struct_fields__)


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
    assert "not supported" not in refusal(agent(effort="high")).message
    assert "`$.options.agents[...]`" in refusal(agent(effort="high")).message


def test_options_that_are_no_object_are_bad_options() -> None:
    """A list or a text in place of the options is refused by the path of the options."""
    for value in ([], "x", 7, None):
        error = refusal(value)
        assert error.code is ErrorCode.BAD_OPTIONS
        assert "`$.options`" in error.message


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
    server(headers={"Authorization": CANARY + "\n"}),
    server(headers={"Authorization": [CANARY]}),
    server(headers={CANARY + " ": "x"}),
    server(url=f"https://user:{CANARY} @a/"),
    {"system_prompt": CANARY + "\x00"},
    agent(prompt=CANARY + "\x00"),
]


@pytest.mark.parametrize("options", LEAKY, ids=lambda options: str(options)[:60])
def test_an_error_never_shows_a_value(options: dict[str, Any]) -> None:
    """The message says what is wrong and where, never the credential, header or prompt itself."""
    error = refusal(options)
    assert CANARY not in error.message
    assert CANARY not in str(error)
    assert CANARY not in repr(error)


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
