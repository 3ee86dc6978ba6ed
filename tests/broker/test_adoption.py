"""Options of hellos that meet a conversation at different moments of its first process."""

from broker.adoption import Adoption
from broker.auth import Identity
from broker.bind import Bind
from broker.config import Config
from broker.config_policy import Policy
from broker.metrics import Metrics
from broker.session import Session
from protocol.options import SessionOptions
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
