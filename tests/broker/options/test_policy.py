"""What a tenant may ask for: modes, credentials, MCP addresses, commands in disguise, permission rules."""

from typing import Any

import pytest
from msgspec.structs import replace

from broker.config.policy import Policy
from broker.options.policy import (
    check_content,
    check_control,
    check_credentials,
    check_options,
    check_updates,
    subject,
)
from protocol.codes import CloseCode, ErrorCode
from protocol.content import Base64Source, Content, DocumentBlock, ImageBlock, TextBlock
from protocol.controls import AddRules, SetPermissionMode, ToolRule
from protocol.errors import ClientError, ConnectionRefused
from protocol.mcp import McpHttp
from protocol.options import Credentials, SessionOptions

DEFAULT = Policy()
URL = "https://api.example.com"


def refusal(options: SessionOptions, policy: Policy = DEFAULT) -> ClientError:
    with pytest.raises(ClientError) as caught:
        check_options(options, policy)
    assert (caught.value.code, caught.value.close) == (ErrorCode.OPTION_NOT_ALLOWED, CloseCode.NOT_ALLOWED)
    return caught.value


# -- hello -----------------------------------------------------------------------------------------------------------


def test_whom_a_connection_speaks_for() -> None:
    """A tenant's server names the subject; any other token speaks for its own and for nobody else."""
    assert subject("*", "ann") == "ann"
    assert subject("*", None) == "*"
    assert subject("ann", None) == subject("ann", "ann") == "ann"
    for named in ("bob", "*", ""):
        with pytest.raises(ConnectionRefused) as caught:
            subject("ann", named)
        assert caught.value.close is CloseCode.NOT_ALLOWED


def test_who_must_bring_a_credential() -> None:
    """Where nobody else pays, a new conversation needs one; the refusal says what is missing."""
    bare, paying = SessionOptions(), SessionOptions(credentials=Credentials(oauth_token="t"))
    check_credentials(bare, DEFAULT, is_needed=False)
    check_credentials(paying, DEFAULT, is_needed=True)
    check_credentials(bare, replace(DEFAULT, credentials="server"), is_needed=True)
    with pytest.raises(ClientError, match=r"options\.credentials is needed") as caught:
        check_credentials(bare, DEFAULT, is_needed=True)
    assert (caught.value.code, caught.value.close) == (ErrorCode.CREDENTIALS_REQUIRED, CloseCode.BIND_FAILED)


# -- options ---------------------------------------------------------------------------------------------------------


def test_ordinary_options_pass_the_default_policy() -> None:
    """A credential, a model, prompts, rules and a public MCP server need no permission."""
    check_options(SessionOptions(), DEFAULT)
    check_options(
        SessionOptions(
            credentials=Credentials(oauth_token="t"), model="opus", system_prompt="/not a command",
            permission_mode="plan", allowed_tools=["Bash"], mcp_servers={"acme": McpHttp("https://mcp.example.com/")},
        ),
        DEFAULT,
    )  # fmt: skip


def test_who_pays() -> None:
    """Where the server pays a client may not bring a credential of its own."""
    paying = SessionOptions(credentials=Credentials(api_key="k"))
    assert "policy.credentials" in refusal(paying, replace(DEFAULT, credentials="server")).message


def test_a_base_url_must_be_listed_exactly() -> None:
    """No prefix, no other case, no trailing slash: a key goes only where the operator said."""
    policy = replace(DEFAULT, base_urls=[URL])
    check_options(SessionOptions(credentials=Credentials(api_key="k", base_url=URL)), policy)
    for url in (URL + "/", URL + "/v1", URL + ".evil.example", URL.upper(), "http" + URL[5:], URL[:-1]):
        options = SessionOptions(credentials=Credentials(api_key="k", base_url=url))
        assert "credentials.base_url: not allowed (policy.base_urls)" in refusal(options, policy).message
        assert "policy.base_urls" in refusal(options).message


def test_permission_modes() -> None:
    """The listed ones only, from hello (which then ends) and from a control request (which does not)."""
    for mode in ("default", "plan", "acceptEdits"):
        check_options(SessionOptions(permission_mode=mode), DEFAULT)
        check_control(SetPermissionMode(mode), DEFAULT, "c1")
    for forbidden in ("bypassPermissions", "dontAsk", "auto"):
        assert "policy.permission_modes" in refusal(SessionOptions(permission_mode=forbidden)).message
        with pytest.raises(ClientError, match=r"policy\.permission_modes") as caught:
            check_control(SetPermissionMode(forbidden), DEFAULT, "c1")
        assert (caught.value.code, caught.value.close, caught.value.ref) == (ErrorCode.OPTION_NOT_ALLOWED, None, "c1")


def test_a_server_that_may_not_be_reached_is_named() -> None:
    """The refusal names the server and the setting, and one bad server among good ones is enough."""
    options = SessionOptions(
        mcp_servers={"good": McpHttp("https://mcp.example.com/"), "bad": McpHttp("http://127.0.0.1/")}
    )
    assert refusal(options).message == "mcp_servers.bad.url: not allowed (policy.mcp_url_prefixes)"


# -- commands in disguise --------------------------------------------------------------------------------------------

PICTURE = ImageBlock(Base64Source("image/png", "/9j/"))
PAPER = DocumentBlock(Base64Source("application/pdf", "/9j/"), "/title")
SPACES = ["", " ", "\n", "\r\n", "\t \v\f", "\u00a0", "\u3000", "\u2028", "\u2029", "\ufeff", " \ufeff ", "\x85",
          "\x1c", "\u1680", "\u202f"]  # fmt: skip


def is_refused(content: Content, policy: Policy = DEFAULT) -> bool:
    try:
        check_content(content, policy, "m-9")
    except ClientError as error:
        return (error.code, error.close, error.ref) == (ErrorCode.OPTION_NOT_ALLOWED, None, "m-9")
    return False


@pytest.mark.parametrize("command", ["/clear", "/", "/model opus", "//", "/\u2603"])
def test_a_command_is_refused_in_every_carrier(command: str) -> None:
    """Alone, behind any white space that a trim takes away, and in any text block."""
    for space in SPACES:
        text = space + command
        carriers: list[Content] = [
            text, [TextBlock(text)], [TextBlock("hello"), TextBlock(text)], [TextBlock(""), TextBlock(text)],
            [PICTURE, TextBlock(text)], [TextBlock(text), PAPER],
        ]  # fmt: skip
        assert [content for content in carriers if not is_refused(content)] == []
        assert not any(is_refused(content, replace(DEFAULT, slash_commands=True)) for content in carriers)


@pytest.mark.parametrize(
    "content",
    ["", "hello", "hello /clear", "hello\n/clear", "\\/clear", "\u2044clear", "\uff0fclear", "1/2", ".", "\ufeff",
     "\u200b/", [PICTURE], [PAPER], [TextBlock("see"), PAPER], [TextBlock("")], [TextBlock("a"), TextBlock("b /")]],
    ids=repr,
)  # fmt: skip
def test_other_content_passes(content: Content) -> None:
    """A slash elsewhere, look-alikes, and media: what begins with a slash there is data."""
    assert not is_refused(content)


# -- permission rules ------------------------------------------------------------------------------------------------


def rule(destination: Any = "session") -> AddRules:
    return AddRules([ToolRule("Bash")], "allow", destination)


def test_rules_of_an_answer_are_for_the_session_and_only_where_allowed() -> None:
    """Nothing is written to a settings file, ever; for the session the policy decides."""
    allowing = replace(DEFAULT, session_permission_rules=True)
    check_updates([], DEFAULT, "r1")
    check_updates([rule(), rule()], allowing, "r1")
    for policy, updates in (
        (DEFAULT, [rule()]),
        *((allowing, [rule(), rule(name)]) for name in ("userSettings", "projectSettings", "localSettings", "cliArg")),
    ):
        with pytest.raises(ClientError, match=r"policy\.session_permission_rules") as caught:
            check_updates(updates, policy, "r1")
        assert (caught.value.code, caught.value.ref) == (ErrorCode.OPTION_NOT_ALLOWED, "r1")
