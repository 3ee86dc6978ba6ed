"""Options of hellos that meet a conversation at different moments of its first process."""

from typing import cast

from broker.auth import Identity
from broker.config.policy import Policy
from broker.config.tree import Config
from broker.metrics import Metrics
from broker.processes.process import Process
from broker.sessions.adoption import Adoption
from broker.sessions.bind import Bind
from broker.sessions.session import Session
from protocol.controls import HookMatcher
from protocol.mcp import McpSdk, McpServer
from protocol.options import Credentials, Permissions, SessionOptions, Settings
from tests.broker.outlets import FakeReader


class Stage:
    """A conversation whose first process is still to come."""

    def __init__(self) -> None:
        identity = Identity("local", "ann", "controller", Policy())
        self.session = Session(("local", "ann", "conv-1"), identity, Config(), Metrics())
        self.adoption = Adoption(self.session, Bind(self.session, Config().pool, lambda: None), is_branch=False)

    def take(self, options: SessionOptions, *, is_starting: bool) -> list[str]:
        return self.adoption.take(options, None, FakeReader("tab"), is_bound=False, is_starting=is_starting)


def test_a_second_hello_does_not_overwrite_what_the_coming_process_is_initialized_with() -> None:
    """The first hello began the process: of the second one, only what is bound late counts."""
    stage = Stage()
    assert stage.take(SessionOptions(system_prompt="pirate"), is_starting=False) == []
    second = SessionOptions(system_prompt="poet", tools=["Read"], effort="low", initialize="client")
    assert stage.take(second, is_starting=True) == ["system_prompt", "initialize", "tools"]
    bound = stage.session.exchange.bound
    assert bound.initialize == {"systemPrompt": ["pirate"]}
    assert (bound.initialize_by, bound.spawn.tools, bound.effort) == ("broker", None, "low")


def test_before_anything_is_started_the_latest_hello_wins() -> None:
    """No process was asked for: nothing is fixed."""
    stage = Stage()
    assert stage.take(SessionOptions(system_prompt="pirate", lazy=True), is_starting=False) == []
    assert stage.take(SessionOptions(system_prompt="poet", tools=["Read"]), is_starting=False) == []
    bound = stage.session.exchange.bound
    assert (bound.initialize, bound.spawn.tools) == ({"systemPrompt": ["poet"]}, ("Read",))


def test_a_hello_on_a_live_process_is_nothing_to_go_back_to() -> None:
    """What was accepted after it holds, whatever becomes of the next process."""
    stage = Stage()
    stage.session.process = cast("Process", object())
    stage.adoption.take(SessionOptions(), None, FakeReader("tab"), is_bound=True, is_starting=False)
    bound = stage.session.exchange.bound
    bound.set_credentials(Credentials(oauth_token="new"))
    bound.merge_settings(Settings(Permissions(deny=["Bash"])))
    bound.hooks = {"PreToolUse": [HookMatcher(["guard"])]}
    stage.session.process = None
    stage.adoption.take_back()
    assert stage.session.exchange.bound is bound
    assert bound.permissions == {"deny": ["Bash"]}


def test_a_refused_hello_takes_nobodys_servers() -> None:
    """Whose MCP servers were declared, and how long a person has, is as it was before."""
    stage = Stage()
    owner, other = FakeReader("owner"), FakeReader("other")
    servers: dict[str, McpServer] = {"own": McpSdk()}
    stage.adoption.take(SessionOptions(mcp_servers=servers), None, owner, is_bound=True, is_starting=False)
    stage.adoption.succeed()
    before = stage.session.exchange.questions.timeout_s
    wish = SessionOptions(mcp_servers=servers, model="nope", permission_timeout_s=1)
    stage.adoption.take(wish, None, other, is_bound=True, is_starting=False)
    stage.adoption.take_back()
    held = stage.session.exchange.declared.owner_of("own")
    assert held is not None
    assert held.is_(owner)
    assert stage.session.exchange.questions.timeout_s == before
    assert stage.session.exchange.bound.model is None


def test_who_pays_is_noted() -> None:
    """The server's credential is known as such until the client brings one."""
    stage = Stage()
    stage.adoption.take(
        SessionOptions(), Credentials(oauth_token="own"), FakeReader("tab"), is_bound=False, is_starting=False
    )
    assert stage.session.exchange.bound.is_paid
    stage.take(SessionOptions(credentials=Credentials(oauth_token="mine")), is_starting=True)
    assert not stage.session.exchange.bound.is_paid
