"""What a process is started with and what replaces it later: tools, directories, plugins, settings, credentials.

Callers: none by name; ``tests.conformance.situations`` imports the module so that it registers.
"""

import json
import uuid
from pathlib import Path
from typing import Any

from tests.conformance.driver import Process, is_init, is_permission_prompt
from tests.conformance.stage import TOKEN, Stage, permit, said, situation, user


def turn(process: Process, text: str, number: int) -> None:
    """The ``number``-th turn of a process; a permission prompt in it is denied."""
    asked = len(prompts(process))
    process.write(user(text))
    process.wait(lambda frame: frame.get("type") == "result" or is_permission_prompt(frame), number + asked)
    if len(prompts(process)) > asked:
        process.wait(lambda frame: frame.get("event", {}).get("type") == "message_stop", 2 * number - 1)
        process.write(permit(prompts(process)[-1], behavior="deny", message="no"))
    process.wait_result(number)


@situation
def chosen_tools(stage: Stage) -> None:
    """``--tools`` is all the tools there are; another one is refused at use, and an empty list is none."""
    process = stage.start(f"--session-id={stage.session_id}", "--tools=Bash,Read,NoSuchTool")
    process.write(user('one [[sim tool="Write:x.txt" tokens=2]]'))
    process.wait_result()
    stage.note(tools=sorted(process.wait(is_init)["tools"]), code=process.finish())
    process = stage.start(f"--session-id={uuid.uuid4()}", "--tools=")
    process.write(user("two [[sim tokens=2]]"))
    process.wait_result()
    stage.note(none=process.wait(is_init)["tools"], code_2=process.finish())


@situation
def added_directories(stage: Stage) -> None:
    """A file in a directory that a flag, or a later setting, adds is read unasked; a missing directory is ignored."""
    early, late = folder(stage, "early", "a.txt"), folder(stage, "late", "b.txt")
    process = stage.start(f"--session-id={stage.session_id}", f"--add-dir={early}", "--add-dir=/no/such/directory")
    process.write(user(f'one [[sim tool="Read:{early}/a.txt" tokens=2]]'))
    process.wait_result()
    added = {"additionalDirectories": [str(late), "/no/such/directory"]}
    process.ask("apply_flag_settings", settings={"permissions": added})
    process.write(user(f'two [[sim tool="Read:{late}/b.txt" tokens=2]]'))
    process.wait_result(2)
    shown = process.wait(is_init, 2).get("additional_directories", [])
    stage.note(asked=len(prompts(process)), shown=sorted(Path(path).name for path in shown), code=process.finish())


@situation
def plugin(stage: Stage) -> None:
    """A plugin's command and agent are listed and the command runs; a directory that is not there is told."""
    made = folder(stage, "tools", ".claude-plugin/plugin.json", json.dumps({"name": "acme", "version": "1.2.3"}))
    folder(stage, "tools", "commands/greet.md", "---\ndescription: Greets\n---\nhello $ARGUMENTS [[sim tokens=2]]\n")
    folder(stage, "tools", "agents/digger.md", "---\nname: digger\ndescription: Digs\n---\nYou dig.\n")
    flags = (f"--session-id={stage.session_id}", f"--plugin-dir={made}", "--plugin-dir=/no/such/plugin")
    process = stage.start(*flags)
    answer = process.ask("initialize")["response"]
    process.write(user("/acme:greet Bob"))
    text = said(process.wait_result())
    init = process.wait(is_init)
    stage.note(
        text=text, commands=ours(row["name"] for row in answer["commands"]),
        agents=ours(row["name"] for row in answer["agents"]), slash=ours(init["slash_commands"]),
        in_init=ours(init["agents"]), plugins=ours(row["name"] for row in init["plugins"]),
        errors=[row["type"] for row in init["plugin_errors"]], code=process.finish(),
    )  # fmt: skip


@situation
def setting_sources(stage: Stage) -> None:
    """Of the files, only those of the sources that are named count; a project's own permission rules never do."""
    rule(stage.home.config / "settings.json", "user-file")
    rule(stage.home.work / ".claude" / "settings.json", "project-file")
    rule(stage.home.work / ".claude" / "settings.local.json", "local-file")
    for number, sources in enumerate(("user", "project,local"), 1):
        process = stage.start(f"--session-id={uuid.uuid4()}", f"--setting-sources={sources}")
        made = []
        for turns, name in enumerate(("user-file", "project-file", "local-file"), 1):
            turn(process, f'make [[sim tool="Bash:touch {name}" tokens=2]]', turns)
            made.append((stage.home.work / name).exists())
            (stage.home.work / name).unlink(missing_ok=True)
        stage.note(**{f"made_{number}": made, f"code_{number}": process.finish()})


@situation
def permission_modes(stage: Stage) -> None:
    """What runs unasked in each mode that can be set late; ``manual`` is default, and bypass needs a flag."""
    process = stage.start()
    modes = ("manual", "acceptEdits", "auto", "dontAsk", "plan")
    made, shown = [], []
    for number, mode in enumerate(modes, 1):
        process.ask("set_permission_mode", mode=mode)
        turn(process, f'make [[sim tool="Write:{mode}.txt" tokens=2]]', number)
        made.append((stage.home.work / f"{mode}.txt").exists())
        shown.append(process.wait(is_init, number)["permissionMode"])
    answer = process.ask("set_permission_mode", mode="bypassPermissions")
    stage.note(made=made, shown=shown, asked=len(prompts(process)), bypass=answer["subtype"], code=process.finish())


@situation
def settings_refused(stage: Stage) -> None:
    """A setting of a wrong type is refused as a whole and by name; unknown ones are not looked at."""
    process = stage.start()
    wrong: list[Any] = [
        {"permissions": {"allow": 5}}, {"permissions": {"defaultMode": "bogus"}}, {"env": 5}, {"model": 5},
        {"fallbackModel": "x"}, {"outputStyle": 5}, {"permissions": {"additionalDirectories": "x"}},
        {"nope": 1}, {"fallbackModel": ["x"]}, {"effortLevel": "bogus"}, {"env": {"A": None}},
        {"permissions": {"allow": ["Bash("]}},
    ]  # fmt: skip
    answers = [process.ask("apply_flag_settings", settings=settings)["subtype"] for settings in wrong]
    stage.note(answers=answers, code=process.finish())


@situation
def effort(stage: Stage) -> None:
    """The effort of the flag holds until another one is set; an unknown word changes nothing, null is the default."""
    process = stage.start(f"--session-id={stage.session_id}", "--effort=low")
    seen = [process.ask("get_settings")["response"]["applied"]["effort"]]
    for value in ("high", "bogus", "ultracode", None):
        process.ask("apply_flag_settings", settings={"effortLevel": value})
        seen.append(process.ask("get_settings")["response"]["applied"]["effort"])
    stage.note(seen=seen, code=process.finish())


@situation
def output_style(stage: Stage) -> None:
    """A style that is set late is the next turn's."""
    process = stage.start()
    process.ask("apply_flag_settings", settings={"outputStyle": "Explanatory"})
    process.write(user("hello [[sim tokens=2]]"))
    process.wait_result()
    stage.note(style=process.wait(is_init)["output_style"], code=process.finish())


@situation
def debug_file(stage: Stage) -> None:
    """The log goes to the file and not to stderr, the folder is made, the filter counts, no credential is in it."""
    logs = {name: stage.home.tmp / "logs" / name / "log" for name in ("all", "mcp", "none")}
    for name, pattern in (("all", None), ("mcp", "mcp"), ("none", "no-such-tag")):
        flags = [f"--debug={pattern}"] if pattern else []
        process = stage.start(f"--session-id={uuid.uuid4()}", *flags, f"--debug-file={logs[name]}")
        process.write(user("hello [[sim tokens=2]]"))
        process.wait_result()
        stage.note(**{f"code_{name}": process.finish(), f"stderr_{name}": process.stderr})
    written = {name: path.read_text() if path.exists() else None for name, path in logs.items()}
    lines = (written["mcp"] or "").splitlines()
    stage.note(
        all=bool(written["all"]), mcp=bool(lines) and all("[DEBUG] [MCP] " in line for line in lines),
        none=written["none"], secret=TOKEN in "".join(filter(None, written.values())),
        link=(logs["all"].parent / "latest").is_symlink(),
    )  # fmt: skip


@situation
def flags_refused(stage: Stage) -> None:
    """What ends the program before it has begun: exit code 1, a text on stderr."""
    own = f"--session-id={stage.session_id}"
    for flag in (
        "--max-budget-usd=0", "--json-schema=nope", "--json-schema=[]", "--setting-sources=bogus", "--no-such-flag",
        "--permission-mode=bogus", "--resume-session-at=x", "--settings=/no/such/file.json", "--thinking=bogus",
    ):  # fmt: skip
        process = stage.spawn(own, flag)
        stage.note(**{flag: (process.wait_exit(), bool(process.stderr))})


@situation
def flags_that_do_no_harm(stage: Stage) -> None:
    """Values that are ignored: the program starts, and says so on stderr or nothing at all."""
    flags = ("--effort=bogus", "--fallback-model=bogus", "--ide", "--include-hook-events", "--betas=no-such-beta")
    process = stage.start(f"--session-id={stage.session_id}", *flags, "--max-turns=0", "--plugin-dir=/no/such/plugin")
    process.write(user('hello [[sim tool="Bash:echo hi" tokens=2]]'))
    stage.note(text=said(process.wait_result()))
    stage.note(told=b"Unknown --effort value" in process.stderr, code=process.finish())


@situation
def fork_at_a_message(stage: Stage) -> None:
    """A fork under an id of one's own, which forgets what came behind the message that it names."""
    process = stage.start()
    for number, text in enumerate(("one", "two", "three"), 1):
        process.write(user(text))
        process.wait_result(number)
    process.finish()
    (parent,) = stage.home.config.glob(f"projects/*/{stage.session_id}.jsonl")
    before = parent.read_bytes()
    entries = [json.loads(line) for line in before.splitlines()]
    first = next(entry["uuid"] for entry in entries if entry["type"] == "assistant")
    own = str(uuid.uuid4())
    flags = (f"--resume={stage.session_id}", "--fork-session", f"--session-id={own}", f"--resume-session-at={first}")
    process = stage.start(*flags)
    process.write(user("four"))
    result = process.wait_result()
    stage.note(
        remembers=f"Earlier messages of yours: {1}." in said(result), is_own=result["session_id"] == own,
        code=process.finish(), untouched=parent.read_bytes() == before,
    )  # fmt: skip


@situation
def cost_across_processes(stage: Stage) -> None:
    """What a conversation has cost goes on after a process that ended in order, and is forgotten by one killed."""
    process = stage.start()
    process.write(user("one [[sim tokens=2]]"))
    spent = process.wait_result()["total_cost_usd"]
    process.finish()
    process = stage.start(f"--resume={stage.session_id}")
    process.write(user("two [[sim tokens=2]]"))
    continued = process.wait_result()["total_cost_usd"]
    process.terminate()
    stage.note(code=process.wait_exit(), continues=continued > 1.5 * spent)


@situation
def credentials_change(stage: Stage) -> None:
    """API key, OAuth token and bearer token take turns: an empty text takes one away, null does not."""
    process = stage.start(f"--session-id={stage.session_id}", "--model=sonnet")
    sources = []
    for number, settings in enumerate(
        ({}, {"ANTHROPIC_API_KEY": "dummy-1"}, {"ANTHROPIC_API_KEY": ""}, {"ANTHROPIC_API_KEY": "dummy-2"}, {},
         {"ANTHROPIC_API_KEY": None}, {"ANTHROPIC_API_KEY": "", "ANTHROPIC_AUTH_TOKEN": "dummy-3"}), 1,
    ):  # fmt: skip
        process.ask("apply_flag_settings", settings={"env": settings})
        process.write(user("hello [[sim tokens=2]]"))
        process.wait_result(number)
        sources.append(process.wait(is_init, number)["apiKeySource"])
    process.ask("apply_flag_settings", settings={"env": {"ANTHROPIC_AUTH_TOKEN": ""}})
    process.write({"type": "update_environment_variables", "variables": {"CLAUDE_CODE_OAUTH_TOKEN": ""}}, user("none"))
    stage.note(sources=sources, is_error=process.wait_result(len(sources) + 1)["is_error"], code=process.finish())


@situation
def tools_for_files(stage: Stage) -> None:
    """Read, Write and Edit work on the file; calls that cannot be done answer with an error and ask nobody."""
    process = stage.start()
    process.ask("set_permission_mode", mode="acceptEdits")
    file = stage.home.work / "a.txt"
    calls: tuple[tuple[str, dict[str, Any]], ...] = (
        ("Write", {"file_path": str(file), "content": "one\ntwo\nthree\n"}),
        ("Read", {"file_path": str(file), "offset": 2, "limit": 1}),
        ("Edit", {"file_path": str(file), "old_string": "two", "new_string": "zwei"}),
        ("Edit", {"file_path": str(file), "old_string": "nowhere", "new_string": "x"}),
        ("Write", {"file_path": str(file), "content": "new\n"}),
        ("Read", {"file_path": str(file.parent / "missing.txt")}),
        ("Read", {}),
    )
    told = []
    for number, (name, given) in enumerate(calls, 1):
        argument = json.dumps(given).replace("\\", "\\\\").replace('"', '\\"')
        process.write(user(f'do [[sim tool="{name}:{argument}" tokens=2]]'))
        process.wait_result(number)
        told.append(file.read_text())
    errors = [block.get("is_error", False) for block in results(process)]
    stage.note(told=told, errors=errors, asked=len(prompts(process)), code=process.finish())


def folder(stage: Stage, name: str, file: str, text: str = "hello\n") -> Path:
    """A directory beside the process's own, with a file in it."""
    made = stage.home.home.parent / name
    path = made / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return made


def rule(path: Path, name: str) -> None:
    """A settings file that allows to touch one file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"permissions": {"allow": [f"Bash(touch {name}:*)"]}}))


def ours(names: Any) -> list[str]:
    return sorted(name for name in names if name.startswith("acme"))


def prompts(process: Process) -> list[Any]:
    return [frame for frame in process.frames if is_permission_prompt(frame)]


def results(process: Process) -> list[Any]:
    """The ``tool_result`` blocks."""
    users = (frame["message"]["content"] for frame in process.frames if frame.get("type") == "user")
    return [block for content in users for block in content if block["type"] == "tool_result"]
