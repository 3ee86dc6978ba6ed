"""What a tenant may ask for: modes, credentials, MCP addresses, commands in disguise, permission rules."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from broker.config import Policy
from broker.policy import (
    check_content,
    check_credentials,
    check_mode,
    check_options,
    check_supported,
    check_updates,
    may_reach,
    subject,
)
from protocol.codes import CloseCode, ErrorCode
from protocol.controls import AddRules, ToolRule
from protocol.errors import ClientError, ConnectionRefused
from protocol.frames import Base64Source, Content, DocumentBlock, Hello, ImageBlock, SessionRef, TextBlock
from protocol.options import Credentials, McpHttp, SessionOptions

DEFAULT = Policy()
URL = "https://api.example.com"


def refusal(options: SessionOptions, policy: Policy = DEFAULT) -> ClientError:
    with pytest.raises(ClientError) as caught:
        check_options(options, policy)
    assert (caught.value.code, caught.value.close) == (ErrorCode.OPTION_NOT_ALLOWED, CloseCode.NOT_ALLOWED)
    return caught.value


# -- hello -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"session": SessionRef(mode="continue")}, "session.mode 'continue'"),
        ({"session": SessionRef(mode="fork", id="a")}, "session.mode 'fork'"),
        ({"role": "observer"}, "role 'observer'"),
        ({"view": "messages"}, "view 'messages'"),
    ],
)
def test_what_is_not_built_is_refused(fields: dict[str, Any], what: str) -> None:
    """What the protocol names and this version lacks is told as such and ends the connection."""
    with pytest.raises(ClientError) as caught:
        check_supported(Hello(**fields))
    assert caught.value.message == f"{what}: not supported by this version"
    assert (caught.value.code, caught.value.close) == (ErrorCode.BAD_OPTIONS, CloseCode.BAD_FRAME)


def test_what_is_built_passes() -> None:
    """The three modes of a session, as controller, in the CLI's own view."""
    check_supported(Hello(session=SessionRef(mode="new")))
    check_supported(Hello(session=SessionRef(mode="open", id="a")))
    check_supported(Hello(session=SessionRef(mode="resume", id="a")))


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
        check_mode(mode, DEFAULT)
    for mode in ("bypassPermissions", "dontAsk", "auto", "", "Plan"):
        with pytest.raises(ClientError, match=r"policy\.permission_modes") as caught:
            check_mode(mode, DEFAULT, "c1")
        assert (caught.value.code, caught.value.close, caught.value.ref) == (ErrorCode.OPTION_NOT_ALLOWED, None, "c1")
    assert "bypassPermissions" in refusal(SessionOptions(permission_mode="bypassPermissions")).message
    check_options(SessionOptions(permission_mode="auto"), replace(DEFAULT, permission_modes=["auto"]))


# -- MCP addresses ---------------------------------------------------------------------------------------------------

REACHABLE = [
    "https://mcp.example.com/", "http://mcp.example.com", "https://mcp.example.com:8443/mcp?key=1#x",
    "https://MCP.Example.COM/", "https://mcp.example.com./", "https://mcp-1_x.example.com/",
    "https://xn--bcher-kva.example/",
    "http://1.1.1.1/", "http://8.8.8.8:80/", "https://[2606:4700:4700::1111]/", "https://[2606:4700:4700::1111]:443/mcp",
    "https://localhost.example.com/", "https://internal.example.com/", "https://10.example.com/",
    "https://0x7f.example.com/",
    "https://example.com/../x", "https://example.com/%2e%2e/@127.0.0.1", "https://example.com/?next=http://127.0.0.1/",
    "https://example.com/#@127.0.0.1",
]  # fmt: skip

UNREACHABLE = {
    "loopback": [
        "http://127.0.0.1/", "http://127.0.0.1:9000/mcp", "http://127.1.2.3/", "http://[::1]/", "http://[::1]:80/",
        "http://[0:0:0:0:0:0:0:1]/", "http://localhost/", "http://localhost:9000/", "http://LOCALHOST/",
        "http://Localhost./", "http://localhost./", "http://a.localhost/", "http://a.localhost./", "http://0.0.0.0/",
        "http://localhost.localdomain/", "http://ip6-localhost/", "http://0.1.2.3/", "http://[::]/",
    ],
    "private": [
        "http://10.0.0.1/", "http://10.255.255.255/", "http://172.16.0.1/", "http://172.31.0.1/", "http://192.168.1.1/",
        "http://100.64.0.1/", "http://100.100.100.200/", "http://198.18.0.1/", "http://[fd00::1]/", "http://[fc00::1]/",
        "http://[fec0::1]/", "http://192.0.2.1/", "http://203.0.113.1/", "http://[2001:db8::1]/",
    ],
    "link-local": [
        "http://169.254.169.254/", "http://169.254.169.254/latest/meta-data/", "http://[fe80::1]/",
        "http://[fe80::1%25eth0]/", "http://[fe80::1%eth0]/", "http://[2606:4700:4700::1111%25eth0]/",
    ],
    "special": [
        "http://192.0.0.192/", "http://224.0.0.1/", "http://239.1.1.1/", "http://255.255.255.255/", "http://240.0.0.1/",
        "http://[ff02::1]/", "http://[100::1]/",
    ],
    "number": [
        "http://2130706433/", "http://0x7f000001/", "http://017700000001/", "http://0x7f.1/", "http://127.1/",
        "http://0x7f.0.0.0x1/", "http://0177.0.0.01/", "http://127.0.0.01/", "http://1.0x/", "http://0x7f.0x1/",
        "http://0X7F.0X1/", "http://127.0.0.1./", "http://2130706433./", "http://8.8.8/", "http://8.8.2056/",
        "http://010.8.8.8/", "http://256.256.256.256/", "http://1.2.3.4.5/", "http://127.0.0.0x1/", "http://.1/",
    ],
    "hidden in IPv6": [
        "http://[::ffff:127.0.0.1]/", "http://[::ffff:7f00:1]/", "http://[::127.0.0.1]/", "http://[::7f00:1]/",
        "http://[::ffff:169.254.169.254]/", "http://[64:ff9b::7f00:1]/", "http://[64:ff9b::127.0.0.1]/",
        "http://[2002:7f00:1::]/", "http://[2002:7f00:0001::1]/", "http://[2001:0:7f00:1::]/",
        "http://[::ffff:8.8.8.8]/",
    ],
    "userinfo": [
        "http://mcp.example.com@127.0.0.1/", "http://user:pass@mcp.example.com/", "http://a@b@mcp.example.com/",
        "http://127.0.0.1@mcp.example.com/", "http://@mcp.example.com/", "http://mcp.example.com:80@127.0.0.1/",
    ],
    "backslash": [
        "http://127.0.0.1\\@mcp.example.com/", "http://mcp.example.com\\@127.0.0.1/", "http:\\\\127.0.0.1/",
        "http://127.0.0.1\\.mcp.example.com/", "https://mcp.example.com/a\\b", "http:/\\127.0.0.1/",
    ],
    "escaped": [
        "http://127.0.0.%31/", "http://%31%32%37.0.0.1/", "http://mcp.example.com%2f@127.0.0.1/",
        "http://loc%61lhost.example.com/", "http://127%2e0.0.1/",
    ],
    "other scripts": [  # full-width and circled digits, ideographic dots, what IDNA drops
        "http://\uff11\uff12\uff17.0.0.1/", "http://127.0.0.\u2460/", "http://127\u30020\u30020\u30021/",
        "http://127.0.0\u30021/", "http://127.0.0.0\uff581/", "http://127.0.0.1\u00ad/", "http://a.\uff4cocalhost/",
        "http://loc\u200balhost.example.com/", "http://\uff4cocalhost/", "http://b\u00fccher.example/",
        "http://mcp.example.com/\u2028", "http://\u0663.0.0.1/",
    ],
    "bare names": [
        "http://metadata/", "http://redis:6379/", "http://kubernetes/", "http://intranet./", "http://a/",
    ],
    "names of here": [
        "http://printer.local/", "http://metadata.google.internal/", "http://x.INTERNAL./", "http://a.local./",
        "http://host.docker.internal/",
    ],
    "no host": [
        "", "http://", "http:///127.0.0.1/", "http://:80/", "http:127.0.0.1/", "http://./", "http://../", "http://#",
        "http://?", "http://a..example.com/", "http://.example.com/", "http://-/", "http://*.example.com/",
        "http://a b.example.com/", "127.0.0.1", "mcp.example.com",
    ],
    "torn": [
        "http://[::1", "http://::1]/", "http://[]/", "http://[1.1.1.1]/", "http://[mcp.example.com]/",
        "http://[v1.x]/", "http://[::g]/", "http://[2606:4700::1]x/", "http://x[2606:4700::1]/",
    ],
}  # fmt: skip


def test_public_addresses_may_be_contacted() -> None:
    """Names with a dot and public addresses, with ports, paths, queries and upper case."""
    assert [url for url in REACHABLE if not may_reach(url, DEFAULT)] == []


@pytest.mark.parametrize("why", UNREACHABLE)
def test_other_addresses_may_not(why: str) -> None:
    """Loopback, private and other special addresses are refused in every notation that some parser understands."""
    assert [url for url in UNREACHABLE[why] if may_reach(url, DEFAULT)] == []


@given(st.text(alphabet="htps:/\\@%.[]127x0afl cohs\u3002\u00ad\uff11?#", max_size=24) | st.text(max_size=12))
@settings(max_examples=200, deadline=None)
def test_no_text_raises(text: str) -> None:
    """Whatever stands in the place of a host, the answer is yes or no."""
    for url in (text, "http://" + text, f"http://{text}/mcp", f"http://[{text}]/"):
        assert may_reach(url, DEFAULT) in (True, False)


PREFIXES = replace(
    DEFAULT, mcp_url_prefixes=["http://127.0.0.1:9000/mcp/", "http://10.0.0.1/", "https://tools.internal/a"]
)


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:9000/mcp/", "http://127.0.0.1:9000/mcp/acme?x=/../", "http://127.0.0.1:9000/mcp/a..b/.c",
     "http://10.0.0.1/", "http://10.0.0.1/any", "https://tools.internal/a", "https://tools.internal/a/b"],
)  # fmt: skip
def test_a_prefix_of_the_policy_opens_what_is_below_it(url: str) -> None:
    """An operator may name what lies on loopback or in a private network."""
    assert may_reach(url, PREFIXES)
    assert not may_reach(url, DEFAULT)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:9000/", "http://127.0.0.1:9000/mcp", "http://127.0.0.1:9000/mcpx/",
        "http://127.0.0.1:90001/mcp/",
        "http://127.0.0.1/mcp/", "https://127.0.0.1:9000/mcp/", "http://127.0.0.1:9000/mcp/../admin",
        "http://127.0.0.1:9000/mcp/..", "http://127.0.0.1:9000/mcp/./../x", "http://127.0.0.1:9000/mcp/%2e%2e/admin",
        "http://127.0.0.1:9000/mcp/.%2E/admin", "http://127.0.0.1:9000/mcp/..\\admin",
        "http://10.0.0.1.example.com@10.0.0.1/",
        "http://10.0.0.1", "http://10.0.0.10/", "https://tools.internal/ab", "https://TOOLS.internal/a",
        "http://127.0.0.1:9000/mcp/\u3002", "http://user@127.0.0.1:9000/mcp/",
    ],
)  # fmt: skip
def test_a_prefix_opens_nothing_else(url: str) -> None:
    """Not its neighbours, and not what a path leads out to."""
    assert not may_reach(url, PREFIXES)


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
