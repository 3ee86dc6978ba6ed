"""What a live process is told of changes: which credential, in which order, and what holds after a refusal."""

import json
import time
from typing import Any, cast

from broker.auth import Identity
from broker.config.policy import Policy
from broker.config.tree import Config
from broker.metrics import Metrics
from broker.processes.process import Process
from broker.sessions.bind import Bind
from broker.sessions.session import Session
from broker.turns.controls import DEADLINE_S
from protocol.controls import ApplyFlagSettings, Control, McpSetServers, SetCredentials, SetModel
from protocol.frames import UserMessage
from protocol.mcp import McpSdk
from protocol.options import Credentials, Permissions, SessionOptions, Settings
from tests.broker.outlets import FakeReader

OLD, NEW = Credentials(api_key="key-old"), Credentials(oauth_token="oauth-new")
EFFORT = ApplyFlagSettings(Settings(effortLevel="low"))


class Cli:
    """A process that keeps what it is told and says nothing by itself."""

    is_dead = False
    pid = 1

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self.on_lines: Any = None

    def write(self, data: bytes) -> None:
        self.lines += [json.loads(line) for line in data.splitlines()]

    def kill(self) -> None:
        self.is_dead = True


class Stage:
    """A session that is bound with ``options`` to a CLI whose lines a test says."""

    def __init__(self, options: SessionOptions | None = None) -> None:
        identity = Identity("local", "ann", "controller", Policy())
        self.session = Session(("local", "ann", "conv-1"), identity, Config(), Metrics())
        self.bound = self.session.exchange.bound
        self.bound.merge(options or SessionOptions(), with_initialize=True)
        self.reader = FakeReader("tab")
        self.session.readers.append(self.reader)
        self.bind = Bind(self.session, Config().pool, lambda: None)
        self.cli = Cli()
        process = cast("Process", self.cli)
        self.session.attach_process(process, "default", "warm", "0b4e")
        self.bind.write(process, "sonnet")
        self.answer_all()
        assert self.bind.is_complete()
        self.session.is_binding = False
        self.told()

    def told(self) -> list[dict[str, Any]]:
        """What the CLI was told since."""
        found, self.cli.lines = self.cli.lines, []
        return found

    def hello(self, reader: FakeReader | None = None, **options: Any) -> None:
        """Another hello, whose options differ."""
        before = self.bound.copy()
        changed = self.bound.merge(SessionOptions(**options), with_initialize=False)
        self.bind.change(changed, reader or self.reader, before)

    def control(self, request_id: str, control: Control) -> None:
        self.session.control(request_id, control, self.reader)

    def say(self, message_id: str) -> None:
        self.session.submit(UserMessage("hello", id=message_id), self.reader, time.monotonic())

    def says(self, *frames: dict[str, Any]) -> None:
        self.session.on_lines([json.dumps(frame).encode() for frame in frames])

    def answer(self, line: dict[str, Any], error: str | None = None) -> None:
        ending = {"subtype": "success", "response": {}} if error is None else {"subtype": "error", "error": error}
        self.says({"type": "control_response", "response": {"request_id": line["request_id"], **ending}})

    def answer_all(self) -> None:
        """The CLI agrees to everything."""
        for line in list(self.cli.lines):
            if line["type"] == "control_request":
                self.answer(line)

    def init(self, source: str) -> None:
        self.says({"type": "system", "subtype": "init", "session_id": "0b4e", "apiKeySource": source})

    def result(self) -> None:
        self.says({"type": "result", "subtype": "success", "session_id": "0b4e"})

    @property
    def replies(self) -> dict[str, str]:
        """How each control request was answered."""
        found = [frame["response"] for frame in self.reader.sent if frame["type"] == "control_response"]
        return {reply["request_id"]: reply.get("error", "success") for reply in found}


def credentials_in(lines: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Every credential variable that was told, in order."""
    found: list[tuple[str, str]] = []
    for line in lines:
        env = line.get("variables") or line.get("request", {}).get("settings", {}).get("env", {})
        found += [(name, env[name]) for name in env if name.endswith(("KEY", "TOKEN"))]
    return found


def test_a_held_credential_stays_untold_beside_servers() -> None:
    """Servers share a line with the credential: in mid-turn it says the one that the turn works with."""
    stage = Stage(SessionOptions(credentials=OLD))
    stage.say("m-1")
    stage.told()
    stage.hello(credentials=NEW, mcp_servers={"own": McpSdk()})
    assert credentials_in(stage.cli.lines) == [("ANTHROPIC_API_KEY", "key-old"), ("ANTHROPIC_AUTH_TOKEN", "")]
    stage.answer_all()
    stage.told()
    stage.result()
    stage.say("m-2")
    told = dict(credentials_in(stage.told()))
    assert told == {"CLAUDE_CODE_OAUTH_TOKEN": "oauth-new", "ANTHROPIC_API_KEY": "", "ANTHROPIC_AUTH_TOKEN": ""}


def test_a_session_without_a_credential_is_told_none_in_mid_turn() -> None:
    """The operator's environment pays for the turn that runs, to its end."""
    stage = Stage()
    stage.say("m-1")
    stage.told()
    stage.hello(credentials=NEW, mcp_servers={"own": McpSdk()})
    assert credentials_in(stage.told()) == []


def test_a_credential_that_is_told_before_the_first_init_is_no_mismatch() -> None:
    """The turn that runs may name either; the next one is compared with the new one."""
    stage = Stage(SessionOptions(credentials=OLD))
    stage.say("m-1")
    stage.control("c1", SetCredentials(NEW))
    stage.init("none")
    assert stage.session.kill_reason is None
    stage.answer_all()
    stage.result()
    stage.say("m-2")
    stage.init("ANTHROPIC_API_KEY")
    assert stage.session.kill_reason == "credential_mismatch"


def test_a_message_does_not_overtake_a_change() -> None:
    """It is written once everything that was asked before it was told."""
    stage = Stage(SessionOptions(credentials=OLD))
    stage.control("a", EFFORT)
    stage.control("b", SetCredentials(NEW))
    stage.say("m-1")
    [first] = stage.told()
    assert first["request"]["settings"] == {"effortLevel": "low"}
    stage.answer(first)
    lines = stage.told()
    assert [line["type"] for line in lines] == ["update_environment_variables", "control_request", "user"]
    assert stage.replies == {"a": "success"}
    stage.answer(lines[1])
    assert stage.replies == {"a": "success", "b": "success"}


def test_an_expired_change_is_never_told() -> None:
    """Its client was told ``timeout``: it does not hold, it is forgotten, and the message behind it goes on."""
    stage = Stage(SessionOptions(credentials=OLD))
    stage.control("a", EFFORT)
    stage.control("b", SetCredentials(NEW))
    stage.say("m-1")
    [first] = stage.told()
    later = time.monotonic() + DEADLINE_S + 1
    stage.session.exchange.tick(later)
    stage.bind.tick(later)
    assert stage.replies == {"a": "timeout", "b": "timeout"}
    assert [line["type"] for line in stage.told()] == ["user"]
    stage.answer(first)
    assert stage.told() == []
    assert stage.bound.credentials == OLD


def test_an_expired_change_is_not_told_between_two_looks() -> None:
    """The answer before it comes after its time is over, and before anybody has looked."""
    stage = Stage(SessionOptions(credentials=OLD))
    stage.control("a", EFFORT)
    stage.control("b", SetCredentials(NEW))
    [first] = stage.told()
    stage.session.exchange.tick(time.monotonic() + DEADLINE_S + 1)
    stage.answer(first)
    assert stage.told() == []
    assert stage.bound.credentials == OLD


def test_two_hellos_of_one_turn_go_back_each_to_its_own() -> None:
    """The one whose model is refused is told so; the other's options hold; nothing refused is left behind."""
    stage = Stage(SessionOptions(model="opus"))
    one, two = FakeReader("one"), FakeReader("two")
    stage.say("m-1")
    stage.told()
    stage.hello(one, model="nope")
    stage.hello(two, effort="low")
    stage.result()
    stage.say("m-2")
    for line in stage.told():
        if line["type"] == "control_request":
            stage.answer(line, "no such model" if line["request"]["subtype"] == "set_model" else None)
    assert (stage.bound.model, stage.bound.effort) == ("opus", "low")
    assert [frame["message"] for frame in one.sent] == ["model: no such model"]
    assert two.sent == []
    [again] = stage.told()
    assert again["request"] == {"subtype": "set_model", "model": "opus"}


def test_a_wish_that_was_held_is_nothing_to_go_back_to() -> None:
    """Of two models in one turn only the later one is told: what held before both holds again."""
    stage = Stage(SessionOptions(model="opus"))
    stage.say("m-1")
    stage.told()
    stage.hello(model="nope")
    stage.hello(model="neither")
    stage.result()
    stage.say("m-2")
    stage.answer(stage.told()[0], "no such model")
    assert stage.bound.model == "opus"


def test_two_refused_models_in_a_row() -> None:
    """The second one was wished for before the first one was refused: neither holds."""
    stage = Stage(SessionOptions(model="opus"))
    stage.hello(model="nope")
    stage.hello(model="neither")
    first, second = stage.told()
    stage.answer(first, "no such model")
    assert stage.bound.model == "neither"
    stage.answer(second, "no such model")
    assert stage.bound.model == "opus"


def test_a_refused_change_takes_back_its_own_alone() -> None:
    """What a hello changed in the meantime, in the same line, holds on."""
    stage = Stage()
    stage.control("a", ApplyFlagSettings(Settings(Permissions(deny=["X"]))))
    [line] = stage.told()
    stage.hello(disallowed_tools=["Bash"])
    stage.answer(line, "no")
    assert stage.bound.disallowed_tools == ["Bash"]
    assert stage.bound.permissions == {"deny": ["Bash"]}
    assert stage.replies == {"a": "no"}


def test_servers_beside_one_that_is_switched_off() -> None:
    """The switch needs no answer: the request ends with that of the servers, and the next change is told."""
    stage = Stage(SessionOptions(mcp_servers={"own": McpSdk()}))
    stage.bound.mcp_off = frozenset({"own"})
    stage.control("a", McpSetServers({"own": McpSdk(), "more": McpSdk()}))
    stage.control("b", EFFORT)
    limits, servers, toggle = stage.told()
    assert (servers["request"]["subtype"], toggle["request"]["subtype"]) == ("mcp_set_servers", "mcp_toggle")
    stage.answer(limits)
    stage.answer(servers)
    assert stage.replies == {"a": "success"}
    [effort] = stage.told()
    stage.answer(effort)
    assert stage.replies == {"a": "success", "b": "success"}


def test_the_answer_to_what_was_changed_again_is_no_news() -> None:
    """A hello's model is written behind a request's: it is the one that holds, for the next process too."""
    stage = Stage()
    stage.control("a", SetModel("opus"))
    stage.hello(model="haiku")
    asked, again = stage.told()
    stage.answer(asked)
    stage.answer(again)
    assert stage.replies == {"a": "success"}
    assert stage.bound.model == "haiku"
    assert not stage.session.log.head, "nobody is told of opus"


def test_nothing_is_steered_past_what_waits_to_be_told() -> None:
    """Options of a hello wait for the next turn, changes for each other: a message that comes then is behind them."""
    stage = Stage()
    seen: list[bool] = []

    def look() -> None:
        seen.append(stage.session.steering.is_possible)

    stage.say("m-1")
    look()
    stage.hello(permission_mode="plan")
    look()
    stage.result()
    stage.say("m-2")
    stage.answer_all()
    look()
    stage.control("a", EFFORT)
    stage.control("b", SetCredentials(NEW))
    look()
    stage.answer_all()
    look()
    assert seen == [True, False, True, False, True]
