"""Control requests of clients: judged, asked, answered once, remembered, told to everybody."""

import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from msgspec import Raw

from broker.config.policy import Policy
from broker.config.tree import Config
from broker.options.bound import Bound
from broker.sessions.exchange import CONTEXT_USAGE_EVERY_S, Exchange
from broker.turns.controls import DEADLINE_S, MAX_IN_FLIGHT
from protocol.cli import Answer
from protocol.codes import ErrorCode
from protocol.controls import (
    ApplyFlagSettings,
    Control,
    GetContextUsage,
    GetSettings,
    HookMatcher,
    Initialize,
    McpReconnect,
    McpSetServers,
    McpToggle,
    RewindFiles,
    SetCredentials,
    SetModel,
    StopTask,
)
from protocol.errors import ClientError
from protocol.mcp import McpSdk, McpStdio
from protocol.options import Credentials, SessionOptions, Settings
from tests.broker.outlets import FakeReader, FakeSession, asked

SECRET = "canary-1234567890"
POLICY = Policy(mcp_servers={"docs": McpStdio("/usr/bin/docs")})


class Stage:
    """An exchange with one client, whose changes are told to nobody until ``settle``."""

    def __init__(self, options: SessionOptions | None = None) -> None:
        self.reader = FakeReader("tab")
        self.session = FakeSession(self.reader)
        self.exchange = Exchange(self.session, POLICY, Config())
        self.exchange.bound.merge(options or SessionOptions(), with_initialize=True)
        self.changes: list[tuple[frozenset[str], Callable[[Answer], None]]] = []
        self.exchange.change = self._change

    def _change(
        self, alter: Callable[[Bound], frozenset[str]], on_done: Callable[[Answer], None], is_wanted: Callable[[], bool]
    ) -> None:
        self.changes.append((alter(self.exchange.bound), on_done))

    def control(self, control: Control, request_id: str = "c1", reader: FakeReader | None = None) -> None:
        self.exchange.control(request_id, control, reader or self.reader)

    def answer(self, response: object = None, error: str | None = None) -> None:
        """The CLI answers the latest request."""
        request_id = self.session.lines[-1]["request_id"]
        ending = {"subtype": "success", "response": response} if error is None else {"subtype": "error", "error": error}
        frame = {"type": "control_response", "response": {"request_id": request_id, **ending}}
        self.exchange.on_answer(msgspec.json.encode(frame))

    @property
    def reply(self) -> dict[str, Any]:
        """The latest reply of the client."""
        found: dict[str, Any] = self.reader.sent[-1]["response"]
        return found

    def refusal(self, control: Control) -> ClientError:
        with pytest.raises(ClientError) as caught:
            self.control(control)
        assert caught.value.ref == "c1"
        return caught.value


@pytest.mark.parametrize(
    ("control", "request_"),
    [
        (StopTask("t1"), {"subtype": "stop_task", "task_id": "t1"}),
        (RewindFiles("m-1", True), {"subtype": "rewind_files", "user_message_id": "m-1", "dry_run": True}),
        (McpReconnect("docs"), {"subtype": "mcp_reconnect", "serverName": "docs"}),
        (GetSettings(), {"subtype": "get_settings"}),
    ],
)
def test_a_control_request_goes_to_the_cli_under_an_id_of_its_own(control: Control, request_: dict[str, Any]) -> None:
    """Encoded from what was understood; the client's id comes back with the answer, or with the CLI's error."""
    stage = Stage()
    stage.control(control, "mine")
    [line] = stage.session.lines
    assert line["request"] == request_
    assert line["request_id"] != "mine"
    stage.answer({})
    assert (stage.reply["subtype"], stage.reply["request_id"]) == ("success", "mine")
    stage.control(control, "again")
    stage.answer(error="Server not found at http://10.0.0.1/")
    assert stage.reply == {"subtype": "error", "request_id": "again", "error": "Server not found at (url)"}


def test_the_same_request_is_carried_out_once() -> None:
    """A client that reconnects joins, or gets the reply that it missed."""
    stage = Stage()
    stage.control(GetSettings())
    again = FakeReader("tab")
    assert stage.exchange.was_asked("c1", again)
    stage.session.readers = [again]
    stage.answer({"effective": {"env": {"K": SECRET}}})
    assert len(stage.session.lines) == 1
    assert again.sent[0]["response"]["response"]["effective"] == {}
    later = FakeReader("tab")
    assert stage.exchange.was_asked("c1", later)
    assert later.sent == again.sent
    assert not stage.exchange.was_asked("c1", FakeReader("other"))


def test_context_usage_is_asked_for_once_in_a_while() -> None:
    """It costs requests to the API; the refusal says when the next one is due."""
    stage = Stage()
    stage.control(GetContextUsage())
    error = stage.refusal(GetContextUsage())
    assert error.code is ErrorCode.RATE_LIMITED
    assert error.retry_after_ms is not None
    assert 0 < error.retry_after_ms <= CONTEXT_USAGE_EVERY_S * 1000 + 1
    assert len(stage.session.lines) == 1


def test_so_many_are_in_flight() -> None:
    """One more is refused; one that is answered makes room."""
    stage = Stage()
    for number in range(MAX_IN_FLIGHT):
        stage.control(GetSettings(), f"c{number}")
    assert stage.refusal(GetSettings()).code is ErrorCode.RATE_LIMITED
    stage.answer({})
    stage.control(GetSettings())


def test_without_a_process_nothing_is_asked() -> None:
    """The client is told so at once."""
    stage = Stage()
    stage.session.has_process = False
    stage.control(SetCredentials(Credentials(api_key="k")))
    assert stage.reply == {"subtype": "error", "request_id": "c1", "error": "cli_exited"}
    assert stage.changes == []
    assert stage.exchange.bound.credentials is None


def test_a_dead_process_answers_what_is_open() -> None:
    """Every request gets its error, and who would have to take something back is told."""
    stage = Stage()
    gone: list[bool] = []
    stage.exchange.on_gone = lambda: gone.append(True)
    stage.control(GetSettings())
    stage.exchange.process_gone()
    assert stage.reply["error"] == "cli_exited"
    assert gone == [True]


# -- changes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("control", "changed", "state"),
    [
        (SetCredentials(Credentials(api_key=SECRET)), {"credentials"}, {"credentials": "api_key"}),
        (ApplyFlagSettings(Settings(effortLevel="low")), {"effort"}, {"settings": ["effortLevel"]}),
        (McpSetServers({"own": McpSdk()}), {"mcp_servers"}, {"mcp_servers": ["docs", "own"]}),
    ],
)
def test_a_change_is_told_and_then_published(control: Control, changed: set[str], state: dict[str, Any]) -> None:
    """Everybody hears of it once the CLI has agreed: names and kinds, never a value."""
    stage = Stage()
    stage.control(control)
    [(options, on_done)] = stage.changes
    assert options == changed
    assert stage.session.told() == []
    on_done(Answer("", None, Raw(b'{"added":["own"],"removed":[],"errors":{}}')))
    assert stage.reply["subtype"] == "success"
    assert SECRET not in str(stage.reader.sent)
    assert stage.session.told() == [{"type": "broker.state", **state}]
    assert stage.session.wakes == 1


def test_a_change_that_is_refused_is_not_published() -> None:
    """The client gets the CLI's words."""
    stage = Stage()
    stage.control(ApplyFlagSettings(Settings(effortLevel="low")))
    stage.changes[0][1](Answer("", "invalid settings: permissions", Raw(b"null")))
    assert stage.reply["error"] == "invalid settings: permissions"
    assert stage.session.told() == []


def test_the_cli_is_blocked_while_it_connects() -> None:
    """From a change of servers, or one that is connected again, to the answer."""
    stage = Stage()
    stage.control(GetSettings())
    seen = [stage.exchange.is_blocked]
    stage.control(McpReconnect("docs"), "c2")
    seen.append(stage.exchange.is_blocked)
    stage.answer()
    seen.append(stage.exchange.is_blocked)
    assert seen == [False, True, False]


def test_a_tenants_server_in_the_client_is_its_own() -> None:
    """From the moment it is asked for: the CLI speaks to it before it answers."""
    stage = Stage()
    stage.control(McpSetServers({"own": McpSdk()}))
    message = {"jsonrpc": "2.0", "id": 0, "method": "initialize"}
    stage.exchange.questions.on_request(asked("r1", "mcp_message", server_name="own", message=message))
    assert stage.reader.sent[-1]["request"]["server_name"] == "own"


def test_an_operators_server_stays_on() -> None:
    """A tenant may switch off its own servers only."""
    stage = Stage()
    error = stage.refusal(McpToggle("docs", enabled=False))
    assert error.code is ErrorCode.OPTION_NOT_ALLOWED
    assert "policy.mcp_servers" in error.message
    stage.control(McpToggle("docs", enabled=True))
    stage.control(McpToggle("own", enabled=False), "c2")


# -- the client's own initialize -------------------------------------------------------------------------------------

HOOKS = Initialize({"PreToolUse": [HookMatcher(["h1"], timeout=5)]}, ["own"])


def client_stage() -> Stage:
    """A session that takes the client's initialize."""
    stage = Stage(SessionOptions(initialize="client"))
    stage.exchange.on_initialized = lambda: stage.session.published.append({"type": "initialized"})
    return stage


def test_the_clients_initialize_becomes_the_processs() -> None:
    """Its hooks with the broker's deadlines, its servers as a change behind it; the answer without the machine's."""
    stage = client_stage()
    stage.control(HOOKS)
    [line] = stage.session.lines
    assert line["request"]["hooks"] == {
        "PreToolUse": [{"hookCallbackIds": ["h1"], "timeout": 15.0, "onFailure": "block"}]
    }
    assert "sdkMcpServers" not in line["request"]
    was_known = stage.exchange.bound.is_initialize_known
    stage.answer({"pid": 1, "commands": []})
    assert stage.reply["response"] == {"commands": []}
    assert (was_known, stage.exchange.bound.is_initialize_known) == (False, True)
    assert [options for options, _ in stage.changes] == [{"mcp_servers"}]
    assert stage.session.told() == [{"type": "initialized"}]
    hook = asked("r1", "hook_callback", callback_id="h1", input={"hook_event_name": "PreToolUse"})
    stage.exchange.questions.on_request(hook)
    assert stage.reader.sent[-1]["request_id"] == "r1"
    stage.control(HOOKS, "c2")
    assert stage.reply == {"subtype": "success", "request_id": "c2", "response": {"commands": []}}
    assert len(stage.session.lines) == 1


def test_a_refused_initialize_may_be_sent_again() -> None:
    """By anybody, and its hooks are nobody's."""
    stage = client_stage()
    stage.control(HOOKS)
    stage.answer(error="hooks must map")
    assert stage.reply["error"] == "hooks must map"
    was_known = stage.exchange.bound.is_initialize_known
    assert stage.exchange.declared.hook_timeout_s("PreToolUse", "h1") is None
    stage.control(Initialize(), "c2", FakeReader("other"))
    stage.answer({})
    assert (was_known, stage.exchange.bound.is_initialize_known) == (False, True)


def test_a_process_that_dies_over_it_leaves_it_open() -> None:
    """The client sends it again, to the next one."""
    stage = client_stage()
    stage.control(HOOKS)
    stage.exchange.process_gone()
    assert stage.reply["error"] == "cli_exited"
    stage.control(HOOKS, "c2")
    stage.answer({})
    assert stage.exchange.bound.is_initialize_known


def test_hooks_are_replaced_where_the_cli_can() -> None:
    """All of them, in the whole request; what the CLI refuses leaves the old ones in force."""
    stage = client_stage()
    stage.control(HOOKS)
    stage.answer({"hook_on_failure_supported": True})
    other = Initialize({"Stop": [HookMatcher(["h2"])]}, ["own"])
    stage.control(other, "c2")
    assert list(stage.session.lines[-1]["request"]["hooks"]) == ["Stop"]
    stage.answer(error="no")
    declared = stage.exchange.declared
    assert declared.hook_timeout_s("PreToolUse", "h1") == 5
    assert declared.hook_timeout_s("Stop", "h2") is None
    stage.control(other, "c3")
    stage.answer({"hook_on_failure_supported": True})
    assert declared.hook_timeout_s("PreToolUse", "h1") is None
    assert declared.hook_timeout_s("Stop", "h2") == 60
    assert list(stage.exchange.bound.hooks) == ["Stop"]


def test_an_initialize_that_changes_nothing_is_answered_or_refused() -> None:
    """As a control reply, which the sender of a control request waits for; and remembered like any other."""
    stage = Stage()
    stage.exchange.handshake.answered(Raw(b'{"commands":[1]}'))
    stage.control(Initialize(), "c1")
    assert stage.reply["response"] == {"commands": [1]}
    stage.control(HOOKS, "c2")
    assert (stage.reply["subtype"], stage.reply["request_id"]) == ("error", "c2")
    assert stage.exchange.was_asked("c2", stage.reader)
    assert stage.session.lines == []


def test_other_requests_do_not_wait_for_it() -> None:
    """A model may be set before the client's initialize."""
    stage = client_stage()
    stage.control(SetModel("opus"))
    stage.answer({})
    assert stage.session.told() == [{"type": "broker.state", "model": "opus"}]


# -- what the CLI never took -----------------------------------------------------------------------------------------

NEW_CLI = {"hook_on_failure_supported": True}
AFTER = Initialize({"PostToolUse": [HookMatcher(["after"])]})
GUARD = Initialize({"PreToolUse": [HookMatcher(["guard"])]})


def with_hooks() -> Stage:
    """A session whose client has initialized it."""
    stage = client_stage()
    stage.control(AFTER)
    stage.answer(NEW_CLI)
    return stage


def test_a_guard_that_dies_with_the_process_is_not_in_force() -> None:
    """Its client may not hear from the next process that it is: it is asked for again, and told to the CLI."""
    stage = with_hooks()
    stage.control(GUARD, "c2")
    stage.exchange.process_gone()
    assert stage.reply["error"] == "cli_exited"
    declared = stage.exchange.declared
    assert declared.hook_timeout_s("PostToolUse", "after") == 60
    assert declared.hook_timeout_s("PreToolUse", "guard") is None
    stage.exchange.handshake.answered(Raw(msgspec.json.encode(NEW_CLI)))  # the next process was told what is bound
    stage.control(GUARD, "c3")
    assert list(stage.session.lines[-1]["request"]["hooks"]) == ["PreToolUse"]
    stage.answer(NEW_CLI)
    assert declared.hook_timeout_s("PreToolUse", "guard") == 60
    assert list(stage.exchange.bound.hooks) == ["PreToolUse"]


@pytest.mark.parametrize("is_first", [True, False])
def test_an_initialize_that_takes_long_is_answered_late(is_first: bool) -> None:
    """Its client hears of the timeout, once; what the CLI says in the end counts, and nothing is stuck."""
    stage = client_stage() if is_first else with_hooks()
    stage.control(GUARD, "slow")
    stage.exchange.tick(time.monotonic() + DEADLINE_S + 1)
    assert (stage.reply["request_id"], stage.reply["error"]) == ("slow", "timeout")
    assert stage.exchange.wake_times() == []
    stage.control(GUARD, "c3")
    assert "ask again" in stage.reply["error"]
    stage.control(AFTER if is_first else HOOKS, "c4")
    assert stage.reply["subtype"] == "error"
    sent = len(stage.reader.sent)
    [slow] = [line for line in stage.session.lines if "guard" in str(line)]
    frame = {"subtype": "success", "request_id": slow["request_id"], "response": NEW_CLI}
    stage.exchange.on_answer(msgspec.json.encode({"type": "control_response", "response": frame}))
    assert len(stage.reader.sent) == sent
    assert list(stage.exchange.bound.hooks) == ["PreToolUse"]
    stage.control(GUARD, "c5")
    assert stage.reply["subtype"] == "success"


def test_servers_that_are_refused_stay_whose_they_were() -> None:
    """Refused by the broker, by the CLI, or lost with the process; and only what is in force is remembered."""
    stage = Stage()
    other = FakeReader("other")
    stage.session.readers.append(other)

    def owner() -> str | None:
        found = stage.exchange.declared.owner_of("own")
        return None if found is None else found.instance

    def settle(error: str | None = None) -> None:
        _, on_done = stage.changes.pop()
        if error is not None:
            stage.exchange.bound.mcp_servers = {"own": McpSdk()}
        on_done(Answer("", error, Raw(b"{}")))

    stage.control(McpSetServers({"own": McpSdk()}), "a1")
    settle()
    for number in range(MAX_IN_FLIGHT):
        stage.control(GetSettings(), f"g{number}")
    with pytest.raises(ClientError):
        stage.control(McpSetServers({"own": McpSdk()}), "b1", other)
    assert owner() == "tab"
    stage.exchange.process_gone()
    stage.control(McpSetServers({"own": McpSdk(), "more": McpSdk()}), "b2", other)
    assert owner() == "other"
    settle("no")
    assert owner() == "tab"
    assert stage.exchange.declared.owner_of("more") is None
    stage.exchange.policy = Policy(mcp_stdio=True)
    stage.control(McpSetServers({"own": McpStdio("/usr/bin/own")}), "b3", other)
    assert owner() is None
    stage.exchange.bound.mcp_servers = {"own": McpSdk()}
    stage.exchange.process_gone()
    assert owner() == "tab"
    stage.changes.clear()
    stage.control(McpSetServers({"next": McpSdk()}), "a2")
    settle()
    assert owner() is None


def test_the_turn_at_context_usage_is_not_spent_on_a_refusal() -> None:
    """Neither without a process nor with too many requests in flight."""
    stage = Stage()
    stage.session.has_process = False
    stage.control(GetContextUsage())
    assert stage.reply["error"] == "cli_exited"
    stage.session.has_process = True
    for number in range(MAX_IN_FLIGHT):
        stage.control(GetSettings(), f"g{number}")
    assert "in flight" in stage.refusal(GetContextUsage()).message
    stage.answer({})
    stage.control(GetContextUsage(), "c2")
    assert stage.session.lines[-1]["request"] == {"subtype": "get_context_usage"}


def test_an_observer_of_the_same_instance_gets_no_reply() -> None:
    """It may read what everybody reads."""
    stage = Stage()
    stage.control(GetSettings())
    stage.session.readers.append(observer := FakeReader("tab", is_controller=False))
    stage.answer({})
    assert stage.reply["subtype"] == "success"
    assert observer.sent == []
