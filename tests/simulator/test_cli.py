"""The simulated CLI on its pipes: what it says to whom, in which order, and what ends it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulator.cli_child import (
    ROOT,
    Child,
    bind_token,
    control,
    deltas,
    is_answer,
    is_init,
    is_result,
    kind,
    user,
)  # fmt: skip

UUID = "11111111-2222-4333-8444-555555555555"


def test_version_is_printed_like_the_real_one() -> None:
    """``--version`` needs no other flag and no stdin."""
    command = [sys.executable, "-m", "simulator.cli", "--version"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=15, check=True)
    assert done.stdout == b"2.1.329 (Claude Code)\n"


def test_readiness_probe_is_answered_before_initialize(tmp_path: Path) -> None:
    """``get_binary_version`` as the very first line is answered, and nothing else is said."""
    with Child(tmp_path, token=None) as child:
        assert child.ask("get_binary_version")["response"] == {
            "version": "2.1.329",
            "buildTime": "2026-11-19T16:23:05Z",
        }
        assert child.finish() == 0
        assert len(child.raw) == 1


def test_initialize_answers_in_full_and_only_the_first_counts(tmp_path: Path) -> None:
    """A second ``initialize`` succeeds and changes nothing."""
    with Child(tmp_path) as child:
        first = child.ask("initialize", systemPrompt=["a"], agents={"mine": {"description": "d", "prompt": "p"}})
        second = child.ask("initialize", agents={"other": {"description": "d", "prompt": "p"}})
    assert first["subtype"] == second["subtype"] == "success"
    assert first["pending_permission_requests"] == []
    wanted = {"commands", "agents", "output_style", "available_output_styles", "models", "account", "pid"}
    assert wanted <= first["response"].keys()
    assert first["response"]["account"]["tokenSource"] == "CLAUDE_CODE_OAUTH_TOKEN"
    assert first["response"]["pid"] == child.process.pid
    assert "mine" in [agent["name"] for agent in second["response"]["agents"]]
    assert "other" not in [agent["name"] for agent in second["response"]["agents"]]


def test_a_turn_has_the_real_order(tmp_path: Path) -> None:
    """From ``running`` to ``idle``, with the assistant line before its block's stop."""
    with Child(tmp_path, CLAUDE_CODE_EMIT_SESSION_STATE_EVENTS="1") as child:
        child.say("hello [[sim tokens=2]]", uuid="m-9")
        child.until(lambda frame: frame.get("state") == "idle")
        assert [kind(frame) for frame in child.frames] == [
            "system/session_state_changed", "command_lifecycle/queued", "command_lifecycle/started", "system/init",
            "system/status", "stream_event/message_start", "stream_event/content_block_start",
            "stream_event/content_block_delta", "stream_event/content_block_delta", "assistant",
            "stream_event/content_block_stop", "stream_event/message_delta", "stream_event/message_stop",
            "rate_limit_event", "result/success", "command_lifecycle/completed", "system/session_state_changed",
        ]  # fmt: skip


def test_the_result_says_what_was_streamed(tmp_path: Path) -> None:
    """Deltas, assistant message and result hold the same text; ``type`` is not the first key of a result."""
    with Child(tmp_path) as child:
        frames = child.turn("hello [[sim tokens=40]]")
        line = child.raw[-1]
    text = "".join(f"hello{index} " for index in range(40))
    said = [frame["message"]["content"] for frame in frames if frame["type"] == "assistant"]
    assert deltas(frames) == text
    assert said == [[{"type": "text", "text": text}]]
    assert frames[-1]["result"] == text
    assert not line.startswith(b'{"type"')


def test_init_and_result_have_their_key_sets(tmp_path: Path) -> None:
    """Everything that the real program always says there is there."""
    with Child(tmp_path) as child:
        frames = child.turn("hello")
    init = next(frame for frame in frames if is_init(frame))
    wanted = {
        "session_id", "uuid", "cwd", "claude_code_version", "model", "permissionMode", "apiKeySource", "tools",
        "mcp_servers", "slash_commands", "output_style", "skills", "agents", "plugins", "capabilities",
        "fast_mode_state",
    }  # fmt: skip
    assert wanted <= init.keys()
    assert init["cwd"] == str(child.work)
    wanted = {
        "duration_ms", "duration_api_ms", "is_error", "num_turns", "stop_reason", "total_cost_usd", "usage",
        "modelUsage", "permission_denials", "queued_turn_count", "terminal_reason", "result_index", "uuid",
        "session_id", "result", "api_error_status", "ttft_ms",
    }  # fmt: skip
    assert wanted <= frames[-1].keys()


def test_partial_messages_only_on_request(tmp_path: Path) -> None:
    """Without ``--include-partial-messages`` no ``stream_event`` is said."""
    base = ("-p", "--input-format", "stream-json", "--output-format", "stream-json", "--verbose")
    with Child(tmp_path, base=base) as child:
        frames = child.turn("hello [[sim tokens=3 thinking]]")
    assert "stream_event" not in {frame["type"] for frame in frames}
    assert frames[-1]["result"] == "hello0 hello1 hello2 "


def test_thinking_is_a_block_of_its_own(tmp_path: Path) -> None:
    """``thinking`` puts a thinking block, with its own assistant line, before the text; one message id for both."""
    with Child(tmp_path) as child:
        frames = child.turn("hello [[sim tokens=2 thinking]]")
    said = [frame["message"] for frame in frames if frame["type"] == "assistant"]
    assert [message["content"][0]["type"] for message in said] == ["thinking", "text"]
    assert said[0]["id"] == said[1]["id"]


def test_message_ids_never_repeat(tmp_path: Path) -> None:
    """Every reply has an id of its own, and every frame a uuid."""
    with Child(tmp_path) as child:
        for _ in range(3):
            child.turn("hello [[sim tokens=2]]")
    ids = [frame["message"]["id"] for frame in child.frames if frame["type"] == "assistant"]
    uuids = [frame["uuid"] for frame in child.frames]
    assert len(set(ids)) == 3
    assert len(set(uuids)) == len(uuids)


def test_costs_are_cumulative_and_usage_is_not(tmp_path: Path) -> None:
    """``total_cost_usd`` and ``modelUsage`` grow over turns, ``usage`` is the turn's own."""
    with Child(tmp_path) as child:
        first = child.result("hello [[sim tokens=10]]")
        second = child.result("hello [[sim tokens=10]]")
    assert first["usage"]["output_tokens"] == second["usage"]["output_tokens"] == 10
    assert second["total_cost_usd"] > first["total_cost_usd"] > 0
    (model,) = second["modelUsage"].values()
    assert model["outputTokens"] == 20
    assert (first["result_index"], second["result_index"]) == (0, 1)


def test_pace_is_obeyed(tmp_path: Path) -> None:
    """``ttft_ms`` and ``itl_ms`` are waited for."""
    with Child(tmp_path) as child:
        result = child.result("hello [[sim tokens=5 ttft_ms=120 itl_ms=30]]")
    assert result["ttft_ms"] >= 120
    assert result["duration_ms"] >= 120 + 4 * 30


def test_messages_in_blocks_are_understood(tmp_path: Path) -> None:
    """The content may be a list of blocks."""
    with Child(tmp_path) as child:
        assert child.result([{"type": "text", "text": "blocks [[sim tokens=1]]"}])["result"] == "blocks0 "  # type: ignore[arg-type]


# --- credentials ---------------------------------------------------------------------------------------------------


def test_without_credential_the_turn_fails(tmp_path: Path) -> None:
    """A synthetic assistant message and an error result without API status; the process lives on."""
    with Child(tmp_path, token=None) as child:
        frames = child.turn("hello")
        error = next(frame for frame in frames if frame["type"] == "assistant")
        assert (error["error"], error["message"]["model"]) == ("authentication_failed", "<synthetic>")
        assert frames[-1]["result"] == "Not logged in · Please run /login"
        assert (frames[-1]["is_error"], frames[-1]["api_error_status"]) == (True, None)
        child.send(bind_token("dummy"))
        assert not child.result("again")["is_error"]


def test_late_environment_carries_only_the_oauth_token(tmp_path: Path) -> None:
    """Other variables of ``update_environment_variables`` are ignored, and nothing is answered."""
    with Child(tmp_path, token=None) as child:
        child.send({"type": "update_environment_variables", "variables": {"ANTHROPIC_API_KEY": "k"}})
        assert child.result("hello")["is_error"]
        child.send(bind_token("dummy"))
        assert not child.result("hello")["is_error"]


@pytest.mark.parametrize("name", ["ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"])
def test_settings_carry_keys(tmp_path: Path, name: str) -> None:
    """``apply_flag_settings.env`` takes effect on the next turn, and ``apiKeySource`` tells a key."""
    with Child(tmp_path, token=None) as child:
        assert child.ask("apply_flag_settings", settings={"env": {name: "dummy"}})["subtype"] == "success"
        frames = child.turn("hello")
    assert not frames[-1]["is_error"]
    init = next(frame for frame in frames if is_init(frame))
    assert init["apiKeySource"] == ("ANTHROPIC_API_KEY" if name == "ANTHROPIC_API_KEY" else "none")


def test_a_bad_credential_is_a_401(tmp_path: Path) -> None:
    """A credential that contains ``bad`` is refused, once, and counts as an API failure with ``subtype`` success."""
    with Child(tmp_path, token="bad-token") as child:
        result = child.result("hello")
    assert (result["subtype"], result["is_error"], result["api_error_status"]) == ("success", True, 401)


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, "unknown"),
        (401, "authentication_failed"),
        (429, "rate_limit"),
        (500, "server_error"),
        (529, "server_error"),
    ],
)
def test_api_errors_end_the_turn(tmp_path: Path, status: int, error: str) -> None:
    """``error=N`` ends as the real program's failures do, and the next turn works."""
    with Child(tmp_path) as child:
        frames = child.turn(f"hello [[sim error={status}]]")
        said = [frame for frame in frames if frame["type"] == "assistant"]
        assert [(frame["error"], frame["api_error_status"]) for frame in said] == [(error, status)]
        assert (frames[-1]["subtype"], frames[-1]["is_error"]) == ("success", True)
        assert frames[-1]["api_error_status"] == status
        assert not child.result("again")["is_error"]


def test_a_bad_directive_is_a_400_that_names_it(tmp_path: Path) -> None:
    """A mistake in a directive is told, not guessed around."""
    with Child(tmp_path) as child:
        result = child.result("hello [[sim tokns=3]]")
    assert result["api_error_status"] == 400
    assert "tokns: unknown key" in result["result"]


def test_a_cut_stream_fails_the_turn(tmp_path: Path) -> None:
    """``cut_after`` breaks the API's stream off: the text so far is abandoned."""
    with Child(tmp_path) as child:
        frames = child.turn("hello [[sim tokens=9 cut_after=4]]")
    assert deltas(frames) == "hello0 hello1 hello2 hello3 "
    assert [frame["message"]["model"] for frame in frames if frame["type"] == "assistant"] == ["<synthetic>"]
    assert frames[-1]["is_error"]
    assert "abandoned_blocks" in next(frame for frame in frames if kind(frame) == "stream_event/message_stop")


# --- control requests ----------------------------------------------------------------------------------------------


def test_models_are_set_and_refused(tmp_path: Path) -> None:
    """An alias is resolved, an unknown full name is an error and changes nothing."""
    with Child(tmp_path, "--model=haiku") as child:
        assert child.ask("set_model", model="opus")["response"] == {"model": "claude-opus-5-5"}
        refused = child.ask("set_model", model="claude-unknown-1")
        assert (refused["subtype"], refused["error_code"]) == ("error", "not_found")
        assert next(frame for frame in child.turn("hello") if is_init(frame))["model"] == "claude-opus-5-5"
        assert child.ask("set_model")["response"] == {"model": "claude-haiku-5-5"}
        assert child.ask("set_model", model=5)["error_code"] == "invalid_request"


def test_a_bad_token_is_found_by_set_model(tmp_path: Path) -> None:
    """A full name is checked with the credential, an alias is not."""
    with Child(tmp_path, token="bad") as child:
        assert child.ask("set_model", model="claude-opus-5-5")["error_code"] == "auth_failed"
        assert child.ask("set_model", model="opus")["subtype"] == "success"


def test_an_unknown_model_of_the_launch_fails_at_the_turn(tmp_path: Path) -> None:
    """``--model`` is not checked at the start."""
    with Child(tmp_path, "--model", "claude-unknown-1") as child:
        result = child.result("hello")
    assert (result["api_error_status"], result["is_error"]) == (404, True)


def test_permission_modes_are_set_and_refused(tmp_path: Path) -> None:
    """A mode is told twice, in the answer and as a status; unknown ones and an unlaunched bypass are errors."""
    with Child(tmp_path) as child:
        assert child.ask("set_permission_mode", mode="plan")["response"] == {"mode": "plan"}
        assert child.until(lambda frame: frame.get("subtype") == "status")["permissionMode"] == "plan"
        assert child.ask("set_permission_mode", mode="zz")["error_code"] == "invalid_mode"
        assert child.ask("set_permission_mode", mode="bypassPermissions")["error_code"] == "bypass_not_launched"
        assert next(frame for frame in child.turn("hello") if is_init(frame))["permissionMode"] == "plan"


def test_bypass_needs_the_flag_of_the_launch(tmp_path: Path) -> None:
    """With ``--allow-dangerously-skip-permissions`` the mode may be set later."""
    with Child(tmp_path, "--allow-dangerously-skip-permissions", IS_SANDBOX="1") as child:
        assert child.ask("set_permission_mode", mode="bypassPermissions")["subtype"] == "success"


def test_thinking_budget_is_taken(tmp_path: Path) -> None:
    """The answer has no payload; a text is refused."""
    with Child(tmp_path) as child:
        assert "response" not in child.ask("set_max_thinking_tokens", max_thinking_tokens=1000)
        assert child.ask("set_max_thinking_tokens", max_thinking_tokens="x")["subtype"] == "error"


@pytest.mark.parametrize("settings", [5, None, [], "x", {"env": 5}, {"permissions": {"allow": "Bash"}}])
def test_settings_are_refused_as_a_whole(tmp_path: Path, settings: object) -> None:
    """What is no object, or would spoil the layer, is an error."""
    with Child(tmp_path) as child:
        assert child.ask("apply_flag_settings", settings=settings)["subtype"] == "error"


def test_settings_merge_key_by_key(tmp_path: Path) -> None:
    """A later call replaces the keys it names and null clears one."""
    with Child(tmp_path) as child:
        child.ask("apply_flag_settings", settings={"permissions": {"allow": ["Read"]}, "effortLevel": "low"})
        child.ask("apply_flag_settings", settings={"effortLevel": None, "outputStyle": "Learning"})
        layer = child.ask("get_settings")["response"]["effective"]
    assert layer == {"permissions": {"allow": ["Read"]}, "outputStyle": "Learning"}


def test_a_bind_burst_is_answered_and_takes_effect(tmp_path: Path) -> None:
    """Everything in one write, the message included."""
    lines = [
        control("initialize", systemPrompt=["You are a pirate."]),
        control("set_model", model="haiku"),
        control("set_permission_mode", mode="acceptEdits"),
        control("apply_flag_settings", settings={"permissions": {"allow": ["Bash(curl:*)"]}}),
    ]
    with Child(tmp_path, token=None) as child:
        child.send(bind_token("dummy"), *lines, user("hello [[sim tokens=1]]"))
        assert not child.until(is_result)["is_error"]
        init = next(frame for frame in child.frames if is_init(frame))
        assert (init["model"], init["permissionMode"]) == ("claude-haiku-5-5", "acceptEdits")
        assert all(any(is_answer(frame, line["request_id"]) for frame in child.frames) for line in lines)


def test_unknown_controls_are_errors_and_harm_nothing(tmp_path: Path) -> None:
    """An unknown subtype, and one that is no text, is answered with an error."""
    with Child(tmp_path) as child:
        assert child.ask("no_such")["error"] == "Unsupported control request subtype: no_such"
        line = {"type": "control_request", "request_id": "x1", "request": {"subtype": {"a": 1}}}
        child.send(line)
        assert child.until(lambda frame: is_answer(frame, "x1"))["response"]["subtype"] == "error"
        assert not child.result("hello")["is_error"]


# --- lines of stdin ------------------------------------------------------------------------------------------------


def test_foreign_lines_are_ignored(tmp_path: Path) -> None:
    """Blank lines, unknown types, values that are no object, keep-alives, withdrawals and stray answers."""
    stray = {"type": "control_response", "response": {"subtype": "success", "request_id": "nobody"}}
    with Child(tmp_path) as child:
        child.send(b"", b"  \r", b"[1]", b"5", {"type": "zz"}, {"no": "type"}, {"type": "keep_alive"}, stray)
        child.send({"type": "control_cancel_request", "request_id": "q"}, {"type": "control_response"})
        assert child.result("hello [[sim tokens=1]]")["result"] == "hello0 "


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b"this is not JSON", b"Error parsing streaming input line"),
        (b'{"type":"user"', b"Error parsing streaming input line"),
        (b"\xff\xfe", b"Error parsing streaming input line"),
        (b"[" * 100_000, b"Error parsing streaming input line"),
        (b'{"type":"user"}', b"Expected message role 'user', got 'undefined'"),
        (b'{"type":"user","message":{"role":"assistant"}}', b"Expected message role 'user', got 'assistant'"),
        (b'{"type":"control_request","request_id":"x"}', b"Missing request on control_request"),
    ],
)
def test_bad_lines_end_the_process(tmp_path: Path, line: bytes, text: bytes) -> None:
    """One bad line on stdin: a message on stderr and exit code 1, as with the real program."""
    with Child(tmp_path) as child:
        child.send(line)
        assert child.wait() == 1
        assert text in child.stderr


def test_line_separators_in_text_do_not_split_lines(tmp_path: Path) -> None:
    """Only ``\\n`` ends a line: U+2028, NEL, CR and an embedded control request stay content."""
    text = 'a\u2028b\u0085c\r\n{"type":"control_request","request_id":"evil","request":{"subtype":"interrupt"}} '
    with Child(tmp_path) as child:
        raw = json.dumps(user(text), ensure_ascii=False).encode()
        child.send(raw)
        assert child.until(is_result)["result"].startswith(f"You said: {text.strip()}")
        assert not any(is_answer(frame, "evil") for frame in child.frames if frame["type"] == "control_response")


def test_very_long_lines_are_accepted(tmp_path: Path) -> None:
    """A user message of 12 MB is one line."""
    with Child(tmp_path) as child:
        assert not child.result("x" * 12_000_000)["is_error"]


def test_odd_characters_travel(tmp_path: Path) -> None:
    """Non-ASCII text and lone surrogates come back as valid UTF-8 and JSON."""
    with Child(tmp_path) as child:
        assert "grüße 🙂" in child.result("grüße 🙂")["result"]
        child.send(b'{"type":"user","message":{"role":"user","content":"lone \\ud800 one"}}')
        assert "lone \ud800 one" in child.until(is_result)["result"]


def test_replayed_messages_are_marked(tmp_path: Path) -> None:
    """``--replay-user-messages`` acknowledges each message by its uuid."""
    with Child(tmp_path, "--replay-user-messages") as child:
        frames = child.turn("hello", uuid=UUID)
    replays = [frame for frame in frames if frame.get("isReplay")]
    assert [(frame["uuid"], frame["message"]["content"]) for frame in replays] == [(UUID, "hello")]


def test_a_blank_prompt_asks_nobody(tmp_path: Path) -> None:
    """White space alone gives a notice and an empty result."""
    with Child(tmp_path) as child:
        frames = child.turn("   ")
    assert "informational" in [frame.get("subtype") for frame in frames]
    assert (frames[-1]["result"], frames[-1]["num_turns"]) == ("", 0)


# --- slash commands ------------------------------------------------------------------------------------------------


def test_clear_changes_the_session(tmp_path: Path) -> None:
    """``/clear`` gives a new session id, forgets the conversation and starts the costs anew."""
    with Child(tmp_path) as child:
        before = child.result("remember me")
        cleared = child.result("/clear")
        after = child.result("hello")
    assert before["session_id"] != cleared["session_id"] == after["session_id"]
    assert cleared["local_command"] == "clear"
    assert "Earlier messages of yours: 0." in after["result"]
    assert "conversation_reset" in [frame["type"] for frame in child.frames]
    assert after["total_cost_usd"] < 2 * before["total_cost_usd"]


def test_model_and_cost_are_commands(tmp_path: Path) -> None:
    """``/model`` changes the model, ``/cost`` costs nothing; an unknown one goes to the model."""
    with Child(tmp_path) as child:
        assert child.result("/cost")["result"].startswith("Estimated cost:")
        assert child.result("/model opus")["result"] == "Set model to `Opus 5.5` for this session only"
        assert "not found" in child.result("/model nope")["result"]
        frames = child.turn("/foo")
    assert next(frame for frame in frames if is_init(frame))["model"] == "claude-opus-5-5"
    assert frames[-1]["result"].startswith("You said: /foo")


def test_composed_text_is_never_a_command(tmp_path: Path) -> None:
    """``client_composed`` keeps a text that begins with a slash from being dispatched."""
    with Child(tmp_path) as child:
        result = child.result("/clear", client_composed=True)
    assert result["result"].startswith("You said: /clear")
