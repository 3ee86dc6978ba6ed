"""What the CLI asks of clients: who sees it, who may answer, and what it is answered when nobody does."""

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.config.policy import Policy
from broker.options.declared import Declared
from broker.sessions.questions import AWAY, KINDS, NOBODY, TOO_MANY, Questions
from broker.turns.reader import Owner, Reader
from broker.turns.requests import MAX_PENDING
from protocol.codes import ErrorCode
from protocol.controls import HookMatcher
from protocol.errors import ClientError
from protocol.mcp import McpSdk
from tests.broker.outlets import FakeReader, FakeSession, answered, asked, failed
from tests.protocol.strategies import JSON
from tests.soak import size

HOOK_S, HANDSHAKE_S, PERSON_S = 7.0, 5.0, 300.0
DENY = {"hookEventName": "PreToolUse", "permissionDecision": "deny"}
AWAY_ERROR = {"code": AWAY.code, "message": AWAY.message}


class Stage:
    """Questions of one session; ``owner`` has declared a hook for every event and the MCP server ``own``."""

    def __init__(self, *others: FakeReader, owner: FakeReader | None = None) -> None:
        self.owner = owner or FakeReader("owner")
        self.session = FakeSession(self.owner, *others)
        self.declared = Declared()
        matcher = HookMatcher(["h"], timeout=HOOK_S)
        self.declared.take_hooks(Owner.of(self.owner), {"PreToolUse": [matcher], "PostToolUse": [matcher]})
        self.declared.take_servers(Owner.of(self.owner), {"own": McpSdk()})
        self.questions = Questions(self.session, self.declared, Policy(), PERSON_S, HANDSHAKE_S)

    def ask(self, request_id: str, subtype: str, **fields: Any) -> bytes:
        line = asked(request_id, subtype, **fields)
        self.questions.on_request(line)
        return line

    def hook(self, request_id: str = "r1", event: str = "PreToolUse", callback_id: str = "h") -> bytes:
        hook_input = {"hook_event_name": event, "tool_name": "Bash"}
        return self.ask(request_id, "hook_callback", callback_id=callback_id, input=hook_input)

    def message(self, request_id: str = "r1", method: str = "tools/call", server: str = "own", **rest: Any) -> bytes:
        message = {"jsonrpc": "2.0", "method": method, "params": {}, **rest}
        return self.ask(request_id, "mcp_message", server_name=server, message=message)

    def answer(self, request_id: str, response: object, reader: Reader | None = None) -> None:
        self.questions.answer(answered(request_id, response), reader or self.owner)

    def refusal(self, request_id: str, response: object, reader: Reader | None = None) -> ErrorCode:
        with pytest.raises(ClientError) as caught:
            self.answer(request_id, response, reader)
        assert caught.value.ref == request_id
        return caught.value.code

    @property
    def waits_s(self) -> float:
        deadline = self.questions.next_deadline
        assert deadline is not None
        return deadline - time.monotonic()


def is_denied(answer: dict[str, Any]) -> bool:
    """Whether a hook's answer blocks the tool in every version of the CLI, whatever else it says."""
    output = answer["response"]["hookSpecificOutput"]
    return (
        answer["subtype"] == "success"
        and output["permissionDecision"] == "deny"
        and bool(output["permissionDecisionReason"])
        and "decision" not in answer["response"]
    )


# -- prompts and elicitations: everybody sees them -------------------------------------------------------------------


def test_a_prompt_goes_to_everybody_and_the_first_answer_wins() -> None:
    """Numbered and in the log; the second answer hears that it was too late."""
    stage = Stage(second := FakeReader("second"))
    stage.ask("r1", "can_use_tool", tool_name="Bash", input={"command": "touch x"})
    assert stage.session.told()[0]["request_id"] == "r1"
    assert [b'"seq":1' in line for line in stage.questions.lines_for("anybody", is_controller=True)] == [True]
    stage.answer("r1", {"behavior": "allow"}, second)
    assert stage.session.answers()[0]["response"] == {"behavior": "allow", "updatedInput": {"command": "touch x"}}
    assert stage.session.told() == [
        {"type": "broker.request_resolved", "request_id": "r1", "outcome": "allowed", "by": "second"}
    ]
    assert stage.refusal("r1", {"behavior": "deny"}) is ErrorCode.ALREADY_ANSWERED
    assert stage.questions.lines_for("anybody", is_controller=True) == []


@pytest.mark.parametrize(
    ("response", "outcome"),
    [
        ({"action": "accept", "content": {"colour": "blue"}}, "allowed"),
        ({"action": "decline"}, "denied"),
        ({"action": "cancel"}, "denied"),
    ],
)
def test_an_elicitation_is_answered_once(response: dict[str, Any], outcome: str) -> None:
    """The CLI gets what the user said; everybody hears how it ended."""
    stage = Stage()
    stage.ask("r1", "elicitation", mcp_server_name="acme", message="which colour?")
    assert stage.waits_s == pytest.approx(PERSON_S, abs=5)
    stage.answer("r1", response)
    assert stage.session.answers()[0]["response"] == response
    assert stage.session.told()[-1]["outcome"] == outcome


def test_a_bad_answer_to_a_person_s_question_changes_nothing() -> None:
    """Its sender is told; the question waits on."""
    stage = Stage()
    stage.ask("r1", "elicitation", message="which colour?")
    stage.ask("r2", "can_use_tool", input={})
    assert stage.refusal("r1", {"action": "perhaps"}) is ErrorCode.BAD_FRAME
    assert stage.refusal("r2", {"behavior": "perhaps"}) is ErrorCode.BAD_FRAME
    update = {"type": "setMode", "mode": "bypassPermissions", "destination": "session"}
    assert stage.refusal("r2", {"behavior": "allow", "updatedPermissions": [update]}) is ErrorCode.OPTION_NOT_ALLOWED
    assert stage.session.answers() == []
    assert len(stage.questions) == 2


def test_an_error_counts_when_no_other_controller_is_there() -> None:
    """Another controller may know the answer; an observer cannot give one."""
    stage = Stage(FakeReader("second"), FakeReader("third", is_controller=False))
    stage.ask("r1", "can_use_tool", input={})
    stage.questions.answer(failed("r1"), stage.owner)
    assert stage.session.answers() == []
    del stage.session.readers[1]
    stage.questions.answer(failed("r1", "broken"), stage.owner)
    assert stage.session.answers()[0]["response"] == {"behavior": "deny", "message": "broken"}
    stage.ask("r2", "elicitation", message="m")
    stage.questions.answer(failed("r2"), stage.owner)
    assert stage.session.answers()[0]["response"] == {"action": "cancel"}


# -- hooks: only their owner sees them -------------------------------------------------------------------------------


def test_a_hook_goes_to_its_owner_alone() -> None:
    """As the CLI wrote it, without a number, not in the log; nobody else may answer, or hears of it."""
    stage = Stage(other := FakeReader("other"))
    line = stage.hook()
    assert [frame["request_id"] for frame in stage.owner.sent] == ["r1"]
    assert stage.session.told() == other.sent == []
    assert stage.questions.lines_for("owner", is_controller=True) == [line]
    for instance, is_controller in (("other", True), ("", True), ("owner", False)):
        assert stage.questions.lines_for(instance, is_controller=is_controller) == []
    assert stage.refusal("r1", {}, other) is ErrorCode.UNKNOWN_REQUEST
    assert stage.waits_s == pytest.approx(HOOK_S, abs=2)
    allow = {"hookSpecificOutput": {"hookEventName": "PreToolUse", "permissionDecision": "allow"}}
    stage.answer("r1", allow)
    assert stage.session.answers() == [{"subtype": "success", "request_id": "r1", "response": allow}]
    assert stage.session.told() == []


@pytest.mark.parametrize(
    "response",
    [
        {"continue": False, "stopReason": "enough"},
        {"continue": False, "decision": "approve"},
        {"decision": "block", "reason": "no"},
        {"decision": "block", "hookSpecificOutput": {"hookEventName": "PreToolUse", "permissionDecision": "allow"}},
        {"decision": "approve", "hookSpecificOutput": DENY},
    ],
)
def test_an_answer_against_a_tool_blocks_it(response: dict[str, Any]) -> None:
    """Whichever way it is said, the CLI is told in the one way that every version obeys."""
    stage = Stage()
    stage.hook()
    stage.answer("r1", response)
    [answer] = stage.session.answers()
    assert is_denied(answer)
    assert answer["response"].get("continue") == response.get("continue")


@given(response=JSON | st.sampled_from([{"async": True}, {"hookSpecificOutput": {"hookEventName": "Stop"}}]))
@settings(max_examples=size(20, 80), deadline=None)
def test_a_hook_that_guards_a_tool_never_fails_open(response: Any) -> None:
    """Whatever its owner answers: the CLI gets something that it understands, or a block."""
    stage = Stage()
    stage.hook()
    try:
        stage.answer("r1", response)
    except ClientError as error:
        assert error.code is ErrorCode.BAD_FRAME  # noqa: PT017 - either outcome is right
        [answer] = stage.session.answers()
        assert is_denied(answer)
        assert stage.refusal("r1", {}) is ErrorCode.ALREADY_ANSWERED
        return
    [answer] = stage.session.answers()
    assert answer["response"] == response or is_denied(answer)


def test_what_a_hook_is_answered_when_its_owner_fails() -> None:
    """An error, no answer in time, nobody there, nobody known: a tool is blocked, other events get an error."""
    stage = Stage()
    stage.hook("r1")
    stage.questions.answer(failed("r1", "broken"), stage.owner)
    stage.session.readers.clear()
    stage.hook("r2")
    stage.hook("r3", "PostToolUse")
    stage.hook("r4", callback_id="unknown")
    stage.hook("r5", "Stop")
    answers = stage.session.answers()
    assert [answer["request_id"] for answer in answers] == ["r1", "r4", "r5"]
    assert [is_denied(answer) for answer in answers[:2]] == [True, True]
    assert answers[2]["subtype"] == "error"
    stage.questions.tick(time.monotonic() + HOOK_S + 1)
    late = stage.session.answers()
    assert is_denied(late[0])
    assert late[0]["response"]["hookSpecificOutput"]["permissionDecisionReason"] == NOBODY
    assert late[1] == {"subtype": "error", "request_id": "r3", "error": NOBODY}
    assert len(stage.questions) == 0
    assert stage.session.counted == {
        ("hook_callback", "denied"): 1, ("hook_callback", "refused"): 2, ("hook_callback", "expired"): 2
    }  # fmt: skip


def test_an_owner_that_was_too_slow_is_told() -> None:
    """As by the CLI: its answer is needed no more."""
    stage = Stage()
    stage.hook()
    stage.questions.tick(time.monotonic() + HOOK_S + 1)
    assert stage.owner.sent[-1] == {"type": "control_cancel_request", "request_id": "r1"}
    assert stage.session.told() == []


def test_an_owner_that_comes_back_finds_what_waits() -> None:
    """The same instance by another connection may answer."""
    stage = Stage()
    stage.session.readers.clear()
    line = stage.hook()
    stage.session.readers.append(again := FakeReader("owner"))
    assert stage.questions.lines_for("owner", is_controller=True) == [line]
    stage.answer("r1", {}, again)
    assert stage.session.answers()[0]["response"] == {}


def test_an_owner_without_a_name_is_its_connection() -> None:
    """Two nameless clients are not the same one."""
    stage = Stage(owner=FakeReader(""))
    stage.hook()
    assert stage.refusal("r1", {}, FakeReader("")) is ErrorCode.UNKNOWN_REQUEST
    assert stage.questions.lines_for("", is_controller=True) == []
    stage.answer("r1", {})


# -- messages for MCP servers in a client ----------------------------------------------------------------------------


def test_a_message_goes_to_the_client_that_serves_it() -> None:
    """Its reply gets the id of the request, whatever id it bears."""
    stage = Stage(other := FakeReader("other"))
    stage.message(id=7)
    assert [frame["request"]["server_name"] for frame in stage.owner.sent] == ["own"]
    assert other.sent == stage.session.told() == []
    assert stage.waits_s == pytest.approx(PERSON_S, abs=5)
    stage.answer("r1", {"mcp_response": {"jsonrpc": "2.0", "id": 99, "result": {"content": []}}})
    [answer] = stage.session.answers()
    assert answer["response"] == {"mcp_response": {"jsonrpc": "2.0", "id": 7, "result": {"content": []}}}


def test_a_notification_is_answered_with_nothing() -> None:
    """It has no id, and neither has its answer."""
    stage = Stage()
    stage.message(method="notifications/initialized")
    stage.answer("r1", {"mcp_response": {"jsonrpc": "2.0", "id": 0, "result": {"x": 1}}})
    assert stage.session.answers()[0]["response"] == {"mcp_response": {"jsonrpc": "2.0", "result": {}}}


def test_a_server_that_nobody_answers_for_holds_nobody_up() -> None:
    """Nobody known: at once.  The handshake, or a client that is away: as long as a server has to connect."""
    stage = Stage()
    stage.message("r1", server="unknown", id="a")
    stage.message("r2", method="initialize", id=0)
    assert stage.waits_s == pytest.approx(HANDSHAKE_S, abs=2)
    stage.session.readers.clear()
    stage.message("r3", id=1)
    stage.message("r4", method="notifications/initialized")
    stage.questions.tick(time.monotonic() + HANDSHAKE_S + 1)
    found = {answer["request_id"]: answer for answer in stage.session.answers()}
    assert found["r1"]["response"] == {"mcp_response": {"jsonrpc": "2.0", "id": "a", "error": AWAY_ERROR}}
    assert found["r2"]["response"] == {"mcp_response": {"jsonrpc": "2.0", "id": 0, "error": AWAY_ERROR}}
    assert found["r3"]["response"] == {"mcp_response": {"jsonrpc": "2.0", "id": 1, "error": AWAY_ERROR}}
    assert found["r4"]["subtype"] == "error"


# -- the rest --------------------------------------------------------------------------------------------------------


def test_other_requests_are_refused() -> None:
    """By name; a dialog of a kind that nobody has declared is left alone, as its rules say."""
    stage = Stage()
    stage.ask("r1", "oauth_token_refresh")
    stage.ask("r2", "request_user_dialog", dialog_kind="x")
    assert stage.session.answers() == [
        {"subtype": "error", "request_id": "r1", "error": "unsupported request oauth_token_refresh"}
    ]
    assert len(stage.questions) == 0


def test_a_request_of_unknown_form_is_refused_safely() -> None:
    """A hook that cannot be read blocks; a line without an id is dropped."""
    stage = Stage()
    stage.ask("r1", "hook_callback", callback_id=7)
    stage.ask("r2", "can_use_tool", agent_id=7)
    stage.ask("r3", "mcp_message", message="x")
    stage.ask("r4", "elsewhere", message="x")
    stage.ask("r5", "request_user_dialog", message="x")
    stage.questions.on_request(b'{"type":"control_request"}')
    answers = stage.session.answers()
    assert is_denied(answers[0])
    assert answers[1]["response"]["behavior"] == "deny"
    assert [answer["subtype"] for answer in answers[2:]] == ["error", "error"]
    assert len(stage.questions) == 0


def test_a_request_that_comes_twice_is_asked_once() -> None:
    """The second is neither shown nor answered."""
    stage = Stage()
    stage.ask("r1", "can_use_tool", input={})
    stage.ask("r1", "can_use_tool", input={})
    assert len(stage.session.told()) == 1
    assert stage.session.answers() == []


def test_too_many_are_answered_by_the_broker() -> None:
    """What has no room is denied, blocked or failed at once."""
    stage = Stage()
    for number in range(MAX_PENDING):
        stage.ask(f"p{number}", "can_use_tool", input={})
    stage.ask("r1", "can_use_tool", input={})
    stage.ask("r2", "elicitation", message="m")
    stage.hook("r3")
    stage.message("r4", id=1)
    answers = {answer["request_id"]: answer for answer in stage.session.answers()}
    assert answers["r1"]["response"] == {"behavior": "deny", "message": TOO_MANY}
    assert answers["r2"]["response"] == {"action": "cancel"}
    assert is_denied(answers["r3"])
    assert answers["r4"]["response"]["mcp_response"]["error"] == AWAY_ERROR
    assert len(stage.questions) == MAX_PENDING


def test_what_the_cli_takes_back_is_told_to_those_who_saw_it() -> None:
    """Everybody for a prompt, the owner alone for a hook, everybody for what nobody knows."""
    stage = Stage()
    stage.ask("r1", "can_use_tool", input={})
    stage.hook("r2")
    stage.session.told()
    for request_id in ("r1", "r2", "r3"):
        line = f'{{"type":"control_cancel_request","request_id":"{request_id}"}}'.encode()
        stage.questions.on_cancel(line, request_id)
    told = [(frame["type"], frame["request_id"]) for frame in stage.session.told()]
    assert told == [
        ("control_cancel_request", "r1"),
        ("broker.request_resolved", "r1"),
        ("control_cancel_request", "r3"),
    ]
    assert stage.owner.sent[-1] == {"type": "control_cancel_request", "request_id": "r2"}
    assert stage.session.answers() == []


def test_a_turns_end_withdraws_its_prompts_and_no_more() -> None:
    """Background agents, hooks and MCP servers go on; a dead process takes everything with it."""
    stage = Stage()
    stage.ask("r1", "can_use_tool", input={})
    stage.ask("r2", "can_use_tool", input={}, agent_id="a1")
    stage.hook("r3")
    stage.message("r4", id=1)
    stage.session.told()
    stage.questions.withdraw(with_turn_only=True)
    assert [frame["request_id"] for frame in stage.session.told()] == ["r1"]
    stage.questions.withdraw(with_turn_only=False)
    assert [frame["request_id"] for frame in stage.session.told()] == ["r2"]
    assert [frame["request_id"] for frame in stage.owner.sent[-2:]] == ["r3", "r4"]
    assert stage.questions.next_deadline is None
    assert sum(stage.session.counted[kind, "withdrawn"] for kind in KINDS) == 4


def test_an_unanswered_question_of_a_person_is_denied() -> None:
    """At its deadline, which is the session's own."""
    stage = Stage()
    stage.questions.timeout_s = 20.0
    stage.ask("r1", "can_use_tool", input={})
    stage.ask("r2", "elicitation", message="m")
    stage.questions.tick(time.monotonic() + 19)
    assert stage.session.answers() == []
    stage.questions.tick(time.monotonic() + 21)
    assert [answer["response"] for answer in stage.session.answers()] == [
        {"behavior": "deny", "message": NOBODY}, {"action": "cancel"}
    ]  # fmt: skip
    assert [frame["outcome"] for frame in stage.session.told()[-2:]] == ["expired", "expired"]


def test_a_server_has_one_deadline_to_introduce_itself() -> None:
    """However often the CLI begins again; everybody is told its name once, and later it is asked anew."""
    stage = Stage()
    stage.message("r1", method="initialize", id=0)
    stage.message("r2", method="initialize", id=0)
    stage.questions.tick(time.monotonic() + HANDSHAKE_S + 0.1)
    found = {answer["request_id"]: answer for answer in stage.session.answers()}
    assert (
        found["r1"]["response"]
        == found["r2"]["response"]
        == {"mcp_response": {"jsonrpc": "2.0", "id": 0, "error": AWAY_ERROR}}
    )
    [told] = stage.session.told()
    assert list(told["mcp_errors"]) == ["own"]
    assert f"pool.mcp_bind_timeout_s = {HANDSHAKE_S:g}" in told["mcp_errors"]["own"]
    sent = len(stage.owner.sent)
    stage.message("r3", method="initialize", id=0)
    assert [answer["request_id"] for answer in stage.session.answers()] == ["r3"]
    assert len(stage.owner.sent) == sent
    assert stage.session.told() == []
    stage.questions.withdraw(with_turn_only=False)
    stage.message("r4", method="initialize", id=0)
    assert stage.owner.sent[-1]["request_id"] == "r4"


def test_a_tool_that_takes_too_long_is_no_silent_server() -> None:
    """Its caller hears of it; nobody else."""
    stage = Stage()
    stage.message("r1", id=0)
    stage.questions.tick(time.monotonic() + PERSON_S + 1)
    assert len(stage.session.answers()) == 1
    assert stage.session.told() == []


@pytest.mark.parametrize("wish", ["ask", "deny"])
def test_a_hook_that_contradicts_itself_blocks(wish: str) -> None:
    """The CLI might follow the other part."""
    stage = Stage()
    stage.hook()
    output = {"hookEventName": "PreToolUse", "permissionDecision": wish}
    stage.answer("r1", {"decision": "approve", "hookSpecificOutput": output})
    assert is_denied(stage.session.answers()[0])
