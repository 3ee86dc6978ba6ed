"""Control requests that wait for a process: who is answered, and what the process is bound with."""

from typing import Any

import pytest

from broker.auth import Identity
from broker.config.policy import Policy
from broker.config.tree import Config
from broker.errors import BrokerError
from broker.metrics import Metrics
from broker.sessions.lobby import Lobby
from broker.sessions.session import Session
from broker.turns.controls import MAX_IN_FLIGHT
from protocol.codes import ErrorCode
from protocol.controls import GetSettings, SetCredentials
from protocol.errors import ClientError
from protocol.options import Credentials, SessionOptions
from tests.broker.outlets import FakeReader

OLD, NEW = Credentials(api_key="key-old"), Credentials(oauth_token="oauth-new")


class Stage:
    """A session without a process, whose lobby is asked."""

    def __init__(self) -> None:
        identity = Identity("local", "ann", "controller", Policy())
        self.session = Session(("local", "ann", "conv-1"), identity, Config(), Metrics())
        self.session.exchange.bound.merge(SessionOptions(credentials=OLD), with_initialize=True)
        self.lobby = Lobby(self.session, lambda: None, lambda: False)

    def reader(self, instance: str = "tab") -> FakeReader:
        made = FakeReader(instance)
        self.session.readers.append(made)
        return made

    @property
    def credentials(self) -> Any:
        return self.session.exchange.bound.credentials


def ids(reader: FakeReader) -> list[str]:
    """Which requests the connection got a reply to."""
    return [frame["response"]["request_id"] for frame in reader.sent]


def test_a_repeat_is_answered_on_the_connection_that_is_there() -> None:
    """The client reconnected and asks again: once, and where it is now."""
    stage = Stage()
    first = stage.reader()
    stage.lobby.hold("c1", GetSettings(), first)
    stage.session.readers.remove(first)
    second = stage.reader()
    stage.lobby.hold("c1", GetSettings(), second)
    stage.lobby.succeed()  # no process is there after all: each held request is answered so
    assert ids(second) == ["c1"]
    assert first.sent == []


def test_repeats_take_no_room() -> None:
    """The bound counts requests; a repeat is none."""
    stage = Stage()
    reader = stage.reader()
    for number in range(MAX_IN_FLIGHT):
        stage.lobby.hold(f"c{number}", GetSettings(), reader)
    stage.lobby.hold("c0", GetSettings(), reader)
    with pytest.raises(ClientError):
        stage.lobby.hold("c-more", GetSettings(), reader)


def test_a_held_credential_is_bound_first() -> None:
    """The process never hears of the old one."""
    stage = Stage()
    stage.lobby.hold("c1", SetCredentials(NEW), stage.reader())
    assert stage.credentials == OLD
    stage.lobby.bind_credentials()
    assert stage.credentials == NEW
    stage.lobby.succeed()
    assert stage.credentials == NEW


def test_a_held_credential_of_a_client_that_left_is_not_bound() -> None:
    """As everything else that it held."""
    stage = Stage()
    reader = stage.reader()
    stage.lobby.hold("c1", SetCredentials(NEW), reader)
    stage.session.readers.remove(reader)
    stage.lobby.bind_credentials()
    assert stage.credentials == OLD


def test_a_held_credential_does_not_hold_where_no_process_came() -> None:
    """Its request is answered with an error, after as many tries as there were."""
    stage = Stage()
    reader = stage.reader()
    stage.lobby.hold("c1", SetCredentials(NEW), reader)
    stage.lobby.bind_credentials()
    stage.lobby.bind_credentials()
    stage.lobby.fail(BrokerError(ErrorCode.BIND_FAILED, "no"))
    assert stage.credentials == OLD
    assert reader.sent[-1]["response"]["error"] == "cli_exited"
