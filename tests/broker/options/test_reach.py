"""Which URLs of MCP servers may be contacted from this machine, in every notation that some parser understands."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.options.reach import may_reach
from tests.soak import size

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
    assert [url for url in REACHABLE if not may_reach(url, ())] == []


@pytest.mark.parametrize("why", UNREACHABLE)
def test_other_addresses_may_not(why: str) -> None:
    """Loopback, private and other special addresses are refused in every notation that some parser understands."""
    assert [url for url in UNREACHABLE[why] if may_reach(url, ())] == []


@given(st.text(alphabet="htps:/\\@%.[]127x0afl cohs\u3002\u00ad\uff11?#", max_size=24) | st.text(max_size=12))
@settings(max_examples=size(50, 200), deadline=None)
def test_no_text_raises(text: str) -> None:
    """Whatever stands in the place of a host, the answer is yes or no."""
    for url in (text, "http://" + text, f"http://{text}/mcp", f"http://[{text}]/"):
        assert may_reach(url, ()) in (True, False)


PREFIXES = ["http://127.0.0.1:9000/mcp/", "http://10.0.0.1/", "https://tools.internal/a"]


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:9000/mcp/", "http://127.0.0.1:9000/mcp/acme?x=/../", "http://127.0.0.1:9000/mcp/a..b/.c",
     "http://10.0.0.1/", "http://10.0.0.1/any", "https://tools.internal/a", "https://tools.internal/a/b"],
)  # fmt: skip
def test_a_prefix_of_the_policy_opens_what_is_below_it(url: str) -> None:
    """An operator may name what lies on loopback or in a private network."""
    assert may_reach(url, PREFIXES)
    assert not may_reach(url, ())


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
