"""Whatever is changed in whatever order: a live process ends up as a new one that is told everything at once."""

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from broker.options.binding import Spawned, Step, burst
from broker.options.bound import Bound
from broker.sessions.accepted import alter
from protocol.controls import ApplyFlagSettings, McpSetServers, SetCredentials
from protocol.mcp import McpHttp, McpSdk, McpServer
from protocol.options import Credentials, Permissions, SessionOptions, Settings
from tests.soak import size

SPAWNED = Spawned("sonnet", 5.0, {"docs": McpSdk()})
OPERATORS_URL, OTHER_URL = "https://operator.example", "https://other.example"


class Process:
    """What a CLI has been told, with its own rules: variables stay, permissions are replaced as a whole."""

    def __init__(self) -> None:
        self.oauth = ""
        self.env: dict[str, str] = {"ANTHROPIC_BASE_URL": OPERATORS_URL}
        self.layer: dict[str, Any] = {}
        self.rest: dict[str, Any] = {"set_model": "sonnet", "set_permission_mode": "default"}

    def read(self, steps: list[Step]) -> None:
        for step in steps:
            line = json.loads(step.line)
            if line["type"] == "update_environment_variables":
                self.oauth = line["variables"]["CLAUDE_CODE_OAUTH_TOKEN"]
                continue
            request = line["request"]
            subtype = request.pop("subtype")
            if subtype == "apply_flag_settings":
                given = request["settings"]
                self.env |= given.pop("env", {})
                assert None not in self.env.values(), "null would be sent as a text"
                assert self.env["ANTHROPIC_BASE_URL"], "an empty address means the public API"
                self.layer |= given
            elif subtype != "initialize":
                [self.rest[subtype]] = request.values()

    @property
    def state(self) -> dict[str, Any]:
        """What counts: nothing is as good as empty."""
        layer = {name: value for name, value in self.layer.items() if value}
        if "permissions" in layer:
            layer["permissions"] = {name: sorted(rules) for name, rules in layer["permissions"].items() if rules}
        env = {name: value for name, value in self.env.items() if value}
        rest = {name: value for name, value in self.rest.items() if value is not None}
        return {"oauth": self.oauth, "env": env, "layer": {k: v for k, v in layer.items() if v}, "rest": rest}


def maybe(values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.just({}) | values


def _named(name: str, values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return maybe(values.map(lambda value: {name: value}))


def _merged(*parts: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.tuples(*parts).map(lambda found: {name: value for part in found for name, value in part.items()})


RULES = st.lists(st.sampled_from(["Read", "Bash(a:*)", "Bash(b:*)"]), unique=True)
SERVERS: st.SearchStrategy[dict[str, McpServer]] = st.dictionaries(
    st.sampled_from(["a", "b", "docs"]), st.sampled_from([McpSdk(), McpHttp("https://mcp.example.com/")])
)
CREDENTIALS = st.tuples(
    st.sampled_from(["oauth_token", "api_key", "auth_token"]), st.sampled_from(["one", "two"]), st.booleans()
).map(lambda found: Credentials(**{found[0]: found[1]}, **({"base_url": OTHER_URL} if found[2] else {})))
SETTINGS = _merged(
    _merged(
        _named("allow", RULES), _named("deny", RULES), _named("ask", RULES),
        _named("additionalDirectories", st.just(["/srv/s"])),
        _named("defaultMode", st.sampled_from(["plan", "default"])),
    ).map(lambda fields: {"permissions": Permissions(**fields)}),
    _named("effortLevel", st.sampled_from(["low", "high"])),
    _named("outputStyle", st.sampled_from(["Learning", "Explanatory"])),
).map(lambda fields: Settings(**fields))  # fmt: skip
OPTIONS = _merged(
    _named("credentials", CREDENTIALS),
    _named("model", st.sampled_from(["sonnet", "opus"])),
    _named("permission_mode", st.sampled_from(["plan", "acceptEdits"])),
    _named("max_thinking_tokens", st.sampled_from([0, 1024])),
    _named("max_output_tokens", st.sampled_from([1, 2])),
    _named("betas", st.sampled_from([[], ["b1"]])),
    _named("effort", st.sampled_from(["low", "max"])),
    _named("allowed_tools", RULES),
    _named("disallowed_tools", RULES),
    _named("add_dirs", st.sampled_from([[], ["/srv/d"]])),
    _named("settings", SETTINGS),
    _named("mcp_servers", SERVERS),
).map(lambda fields: SessionOptions(**fields))
CHANGES = st.lists(
    OPTIONS | CREDENTIALS.map(SetCredentials) | SETTINGS.map(ApplyFlagSettings) | SERVERS.map(McpSetServers),
    max_size=6,
)


@given(first=OPTIONS, changes=CHANGES, refused=st.sets(st.integers(0, 5)))
@settings(max_examples=size(20, 60), deadline=None)
def test_a_live_process_is_as_a_restored_one(first: SessionOptions, changes: list[Any], refused: set[int]) -> None:
    """By hello or by a control request; a change that was told and then taken back as a whole leaves no trace."""
    bound = Bound(OPERATORS_URL)
    bound.merge(first, with_initialize=True)
    live = Process()
    live.read(burst(bound, SPAWNED))
    for number, change in enumerate(changes):
        before = bound.copy()
        if isinstance(change, SessionOptions):
            names = bound.merge(change, with_initialize=False)
        else:
            names = alter(change, bound)
        steps = burst(bound, SPAWNED, names)
        live.read(steps)
        if number in refused and before.credentials is not None:  # without one before there is none to go back to
            for step in steps:
                bound.take_back(step.fields, before)
            told_again = frozenset[str]().union(*(step.names for step in steps))
            live.read(burst(bound, SPAWNED, told_again))
    restored = Process()
    restored.read(burst(bound, SPAWNED))
    assert live.state == restored.state
