"""What a simulated process is started with: fallbacks, limits, schemas, directories, plugins, sources, the log."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.simulator.cli_child import BASE_FLAGS, Child, Frame, bind_token, is_init, is_prompt, tool_results

FITS = 'what [[sim tool="StructuredOutput:{\\"answer\\": 4}"]]'
SCHEMA = {"type": "object", "properties": {"answer": {"type": "integer"}}, "required": ["answer"]}
WITHOUT_SOURCES = tuple(flag for flag in BASE_FLAGS if not flag.startswith("--setting-sources"))


def of(frames: list[Frame], subtype: str) -> list[Frame]:
    return [frame for frame in frames if frame.get("subtype") == subtype]


@pytest.mark.parametrize(
    ("status", "retries", "tries", "answers"),
    [(529, "2", 2, True), (529, None, 2, True), (529, "1", 1, False), (500, "0", 0, True), (429, "1", 1, False)],
)
def test_a_fallback_answers(tmp_path: Path, status: int, retries: str | None, tries: int, answers: bool) -> None:
    """An overloaded model after three tries, a failing one at once, a rate limit never; then the first one again."""
    environment: dict[str, Any] = {} if retries is None else {"CLAUDE_CODE_MAX_RETRIES": retries}
    with Child(tmp_path, "--fallback-model=haiku", **environment) as child:
        frames = child.turn(f"hello [[sim tokens=2 error={status} error_model=sonnet]]")
        again = child.turn("again [[sim tokens=2]]")
    assert len(of(frames, "api_retry")) == tries
    assert [frame["fallback_model"] for frame in of(frames, "model_fallback")] == ["claude-haiku-5-5"] * answers
    assert frames[-1]["is_error"] is not answers
    assert not of(again, "model_fallback")
    assert set(again[-1]["modelUsage"]) == {"claude-sonnet-5-5", *(["claude-haiku-5-5"] if answers else [])}


def test_the_last_fallbacks_error_is_the_turns(tmp_path: Path) -> None:
    """Models are asked in order, each once; one that is named twice is asked once."""
    with Child(tmp_path, "--model=claude-unknown-1", "--fallback-model=claude-unknown-2,claude-unknown-1") as child:
        frames = child.turn("hello")
    assert [frame["trigger"] for frame in of(frames, "model_fallback")] == ["model_not_found"]
    assert frames[-1]["api_error_status"] == 404


def test_a_schema_shapes_the_answer(tmp_path: Path) -> None:
    """What fits is in the result, what does not is refused; a model that says nothing is reminded once."""
    with Child(tmp_path) as child:
        child.ask("initialize", jsonSchema=SCHEMA)
        first = child.result(FITS)
        second = child.turn("hello [[sim tokens=2]]")
        child.turn('what [[sim tool="StructuredOutput:{}"]]')
        assert child.ask("initialize", jsonSchema={"type": "null"})["subtype"] == "success"
        assert child.result(FITS)["structured_output"] == {"answer": 4}
    assert (first["structured_output"], first["result"]) == ({"answer": 4}, '{"answer":4}')
    assert len([frame for frame in second if frame.get("isSynthetic")]) == 1
    assert "structured_output" not in second[-1]
    wrong = [block["content"] for block in tool_results(child.frames) if block.get("is_error")]
    assert wrong == ["Output does not match required schema: root: must have required property 'answer'"]


def test_what_is_no_schema_ends_the_process_or_counts_for_nothing(tmp_path: Path) -> None:
    """A text is the end of the process, as it is of the real one; an object that is none is forgotten."""
    with Child(tmp_path) as child:
        child.ask("initialize", jsonSchema={"type": "bogus"})
        assert "StructuredOutput" not in next(filter(is_init, child.turn(FITS)))["tools"]
    with Child(tmp_path) as child:
        child.send(
            {"type": "control_request", "request_id": "i", "request": {"subtype": "initialize", "jsonSchema": 5}}
        )
        assert child.wait() == 1
        assert b"WeakMap" in child.stderr


@pytest.mark.parametrize(("limit", "ran"), [("2", 2), ("0", 3), ("2.5", 2), ("-1", 1)])
def test_requests_of_a_turn_are_limited(tmp_path: Path, limit: str, ran: int) -> None:
    """A turn that wants more tool calls ends behind the last that was allowed; nought is no limit."""
    with Child(tmp_path, f"--max-turns={limit}") as child:
        frames = child.turn('work [[sim tool="Bash:echo hi" tool_times=3 tokens=1]]')
        assert not child.result("hello")["is_error"]
    assert len(tool_results(frames)) == ran
    assert (frames[-1]["subtype"] == "success") == (limit == "0")
    if limit != "0":
        assert frames[-1]["errors"] == [f"Reached maximum number of turns ({limit})"]


def test_a_budget_ends_every_turn_once_it_is_spent(tmp_path: Path) -> None:
    """The turn that spends it, before its tool runs, and those behind it, which cost nothing; commands still work."""
    with Child(tmp_path, "--max-budget-usd=0.0001") as child:
        first = child.turn('one [[sim tool="Bash:touch made"]]')
        second = child.result("two")
        cost = child.result("/cost")
    assert (first[-1]["subtype"], first[-1]["terminal_reason"]) == ("error_max_budget_usd", "budget_exhausted")
    assert first[-1]["errors"] == ["Reached maximum budget ($0.0001)"]
    assert len(list(filter(is_prompt, first))) == 1
    assert not (child.work / "made").exists()
    assert second["total_cost_usd"] == first[-1]["total_cost_usd"] > 0
    assert not cost["is_error"]


def test_a_budget_is_the_processs_own(tmp_path: Path) -> None:
    """What earlier processes of the conversation spent does not count."""
    with Child(tmp_path, "--session-id=0b4e0b4e-aaaa-4bbb-8ccc-0b4e0b4e0b4e") as child:
        spent = child.result("one [[sim tokens=1]]")["total_cost_usd"]
        child.finish()
    with Child(tmp_path, "--continue", f"--max-budget-usd={1.6 * spent}") as child:
        result = child.result("two [[sim tokens=1]]")
    assert not result["is_error"]
    assert result["total_cost_usd"] > 1.6 * spent


def test_files_beside_the_working_directory_are_read(tmp_path: Path) -> None:
    """Directories of the launch and of later settings are shown and are read unasked; others ask."""
    for name in ("early", "late", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text(f"{name}\n")
    with Child(tmp_path, f"--add-dir={tmp_path}/early", "--add-dir=/no/such", "--permission-mode=dontAsk") as child:
        child.ask("apply_flag_settings", settings={"permissions": {"additionalDirectories": [str(tmp_path / "late")]}})
        turns = [child.turn(f'read [[sim tool="Read:{tmp_path}/{name}/a.txt"]]') for name in ("early", "late", "other")]
    assert [bool(frames[-1]["permission_denials"]) for frames in turns] == [False, False, True]
    assert next(filter(is_init, turns[0]))["additional_directories"] == [f"{tmp_path}/early", f"{tmp_path}/late"]


def plugin(folder: Path, manifest: str = '{"name": "acme", "version": "1.2.3"}') -> Path:
    for path, text in (
        (".claude-plugin/plugin.json", manifest),
        ("commands/greet.md", "---\ndescription: Greets\n---\nhello $ARGUMENTS [[sim tokens=2]]\n"),
        ("agents/digger.md", "---\nname: digger\ndescription: Digs\n---\nYou dig.\n"),
        ("skills/paint/SKILL.md", "---\nname: paint\ndescription: Paints\n---\nPaint.\n"),
    ):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    return folder


def test_a_plugin_brings_commands_agents_and_skills(tmp_path: Path) -> None:
    """They are listed under the plugin's name, and a command becomes its text."""
    made = plugin(tmp_path / "tools")
    with Child(tmp_path, f"--plugin-dir={made}") as child:
        answer = child.ask("initialize")["response"]
        frames = child.turn("/acme:greet Bob")
    init = next(filter(is_init, frames))
    assert init["plugins"] == [{"name": "acme", "path": str(made), "source": "acme@inline", "version": "1.2.3"}]
    assert {"acme:greet", "acme:paint"} <= set(init["slash_commands"])
    assert ("acme:digger" in init["agents"], init["skills"]) == (True, ["acme:paint"])
    rows: list[dict[str, Any]] = answer["commands"] + answer["agents"]
    assert [row["description"] for row in rows if row["name"] in {"acme:greet", "acme:digger"}] == [
        "(acme) Greets",
        "Digs",
    ]
    assert frames[-1]["result"] == "hello0 hello1 "


def test_what_is_wrong_with_a_plugin_is_told(tmp_path: Path) -> None:
    """A missing directory and a broken manifest; a directory without one is no plugin, and no error."""
    broken, bare = plugin(tmp_path / "broken", "{"), tmp_path / "bare"
    bare.mkdir()
    flags = [f"--plugin-dir={path}" for path in (broken, bare, "/no/such/plugin")]
    with Child(tmp_path, *flags) as child:
        init = next(filter(is_init, child.turn("hello")))
    assert init["plugins"] == []
    assert [(row["plugin"], row["type"]) for row in init["plugin_errors"]] == [
        ("inline[0]", "generic-error"),
        ("inline[2]", "path-not-found"),
    ]


@pytest.mark.parametrize(("sources", "allowed"), [("", []), ("user", ["user"]), ("project,local", ["local"])])
def test_only_the_sources_that_are_named_count(tmp_path: Path, sources: str, allowed: list[str]) -> None:
    """A project's own permission rules never do."""
    places = {
        "user": tmp_path / "config" / "settings.json",
        "project": tmp_path / "work" / ".claude" / "settings.json",
        "local": tmp_path / "work" / ".claude" / "settings.local.json",
    }
    for name, path in places.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"permissions": {"allow": [f"Bash(touch {name})"]}}))
    flags = (f"--setting-sources={sources}", "--permission-mode=dontAsk")
    with Child(tmp_path, *flags, base=WITHOUT_SOURCES) as child:
        for name in places:
            child.turn(f'make [[sim tool="Bash:touch {name}"]]')
    assert [name for name in places if (child.work / name).exists()] == allowed


@pytest.mark.parametrize(
    ("pattern", "tags"),
    [
        (None, {"MCP", "init", ""}),
        ("mcp", {"MCP"}),
        ("!mcp", {"init", ""}),
        ("mcp,!init", {"MCP", "init", ""}),
        ("x", set()),
    ],
)
def test_the_log_goes_to_its_file(tmp_path: Path, pattern: str | None, tags: set[str]) -> None:
    """In a folder that is made, filtered by tag (both kinds of filter at once are none); no credential is in it."""
    path = tmp_path / "logs" / "deep" / "debug.log"
    flags = [f"--debug={pattern}"] if pattern else []
    with Child(tmp_path, *flags, f"--debug-file={path}", token="dummy-secret") as child:
        child.send(bind_token("dummy-late-secret"))
        child.turn("a private word")
        assert child.stderr == b""
    text = path.read_text() if path.exists() else ""
    found = {tag for tag in ("MCP", "init") if f"[DEBUG] [{tag}] " in text} | (
        {""} if "MDM settings" in text else set()
    )
    assert found == tags
    assert not [word for word in ("secret", "private") if word in text]
    assert path.exists() == bool(tags)
    assert (path.parent / "latest").exists() == bool(tags)


def test_effort_and_style_are_set_late(tmp_path: Path) -> None:
    """An unknown effort changes nothing, null is the default; a style is the next turn's."""
    with Child(tmp_path, "--effort=low") as child:
        seen = [child.ask("get_settings")["response"]["applied"]["effort"]]
        for value in ("high", "bogus", 5, "ultracode", None):
            child.ask("apply_flag_settings", settings={"effortLevel": value, "outputStyle": "Explanatory"})
            seen.append(child.ask("get_settings")["response"]["applied"]["effort"])
        init = next(filter(is_init, child.turn("hello")))
    assert seen == ["low", "high", "high", None, "xhigh", "medium"]
    assert init["output_style"] == "Explanatory"


def test_ignored_values_are_told_on_stderr(tmp_path: Path) -> None:
    """The process starts all the same."""
    with Child(tmp_path, "--effort=bogus", "--betas=a", token=None) as child:
        assert child.finish() == 0
        assert child.stderr.count(b"Warning: ") == 2
