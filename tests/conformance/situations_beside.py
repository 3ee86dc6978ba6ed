"""What happens beside a turn or across it: steering, background commands, subagents, rewinding, figures of the session.

Callers: none by name; ``tests.conformance.situations`` imports the module so that it registers.
"""

from tests.conformance.driver import Frame, Process, is_delta
from tests.conformance.situations_controls import content, quoted
from tests.conformance.stage import TOUCH, Stage, await_prompt, permit, said, situation, user


def task_frames(process: Process, subtype: str, count: int = 1) -> Frame:
    return process.wait(lambda frame: frame.get("subtype") == subtype, count)


@situation
def urgent_message(stage: Stage) -> None:
    """A message with priority ``now`` cuts a reply short, which counts as a success, and has the next turn."""
    process = stage.start()
    process.write(user("first [[sim tokens=200 itl_ms=20]]"))
    process.wait(is_delta, 3)
    process.write({**user("second [[sim tokens=3]]"), "priority": "now"})
    first, second = process.wait_result(1), process.wait_result(2)
    stage.note(cut=said(first)[:6], text=said(second), code=process.finish())


@situation
def urgent_message_before_the_reply(stage: Stage) -> None:
    """The same before the first delta: the first turn is an error."""
    process = stage.start()
    process.write(user("first [[sim tokens=3 ttft_ms=5000]]"))
    process.wait(lambda frame: frame.get("subtype") == "status")
    process.write({**user("second [[sim tokens=3]]"), "priority": "now"})
    process.wait_result(1)
    stage.note(text=said(process.wait_result(2)), code=process.finish())


@situation
def late_message_during_a_tool(stage: Stage) -> None:
    """A message with priority ``later`` never joins the running turn."""
    process = stage.start()
    process.write(user(f"work {TOUCH}"))
    prompt = await_prompt(process)
    process.write({**user("second [[sim tokens=3]]"), "priority": "later"})
    process.write(permit(prompt, behavior="allow", updatedInput=prompt["request"]["input"]))
    process.wait_result(2)
    results = [said(frame)[:4] for frame in process.frames if frame["type"] == "result"]
    stage.note(results=results, code=process.finish())


@situation
def replayed_messages(stage: Stage) -> None:
    """``--replay-user-messages`` repeats a message when a turn takes it up, also in mid-turn."""
    process = stage.start(f"--session-id={stage.session_id}", "--replay-user-messages")
    process.write(user('work [[sim tool="Bash:sleep 1" tokens=2]]'))
    process.wait(lambda frame: frame.get("event", {}).get("type") == "message_stop")
    process.write({**user("second [[sim tokens=3]]"), "priority": "next"})
    process.wait_result()
    code = process.finish()
    repeated = [frame for frame in process.frames if frame.get("isReplay")]
    stage.note(repeated=[frame["message"]["content"][:6] for frame in repeated], code=code)


@situation
def background_command(stage: Stage) -> None:
    """A command in the background outlives its turn and is stopped by request."""
    process = stage.start(CLAUDE_CODE_EMIT_SESSION_STATE_EVENTS="1")
    call = {"command": "sleep 30", "description": "nap", "run_in_background": True}
    process.write(user(f'work [[sim tool="Bash:{quoted(call)}" tokens=2]]'))
    process.wait_result()
    task = task_frames(process, "task_started")["task_id"]
    nobody = process.ask("stop_task", task_id="nobody")
    stopped = process.ask("stop_task", task_id=task)
    stage.note(answers=[nobody["response"], stopped["response"]], code=process.finish())


@situation
def background_command_ends(stage: Stage) -> None:
    """A command in the background that ends by itself makes the program begin a turn of its own."""
    process = stage.start(CLAUDE_CODE_EMIT_SESSION_STATE_EVENTS="1")
    call = {"command": "sleep 1", "description": "nap", "run_in_background": True}
    process.write(user(f'work [[sim tool="Bash:{quoted(call)}" tokens=2]]'))
    process.wait_result(2)
    stage.note(text=said(process.wait_result(2)), code=process.finish())


@situation
def subagent_in_the_foreground(stage: Stage) -> None:
    """A subagent that calls a tool: prompt, tool and report are told beside the turn."""
    process = stage.start(CLAUDE_CODE_DISABLE_BACKGROUND_TASKS="1")
    process.ask("initialize", agents={"helper": {"description": "Helps.", "prompt": "You help."}})
    job = {"description": "do it", "prompt": f"sub {TOUCH}", "subagent_type": "helper"}
    process.write(user(f'work [[sim tool="Task:{quoted(job)}" tokens=2]]'))
    prompt = process.wait(lambda frame: frame.get("request", {}).get("subtype") == "can_use_tool")
    process.wait(lambda frame: frame.get("type") == "assistant" and frame["parent_tool_use_id"])
    process.write(permit(prompt, behavior="allow", updatedInput=prompt["request"]["input"]))
    process.wait_result()
    stage.note(touched=stage.touched, asks="agent_id" in prompt["request"], code=process.finish())


@situation
def subagent_in_the_background(stage: Stage) -> None:
    """A subagent that outlives the turn: it speaks behind the result, and its end begins one of the program's own."""
    process = stage.start(CLAUDE_CODE_EMIT_SESSION_STATE_EVENTS="1")
    process.ask("initialize", agents={"helper": {"description": "Helps.", "prompt": "You help."}})
    job = {"description": "do it", "prompt": "sub [[sim tokens=2 ttft_ms=1000]]", "subagent_type": "helper"}
    process.write(user(f'work [[sim tool="Task:{quoted(job)}" tokens=2]]'))
    process.wait_result()
    process.wait(lambda frame: frame.get("subtype") == "task_notification")
    process.wait(lambda frame: frame.get("state") == "idle")
    stage.note(code=process.finish())


@situation
def rewound_files(stage: Stage) -> None:
    """Files go back to what they were before a message, and a file that it made goes away."""
    process = stage.start(CLAUDE_CODE_ENABLE_SDK_FILE_CHECKPOINTING="true")
    process.ask("apply_flag_settings", settings={"permissions": {"allow": ["Write"]}})
    path = stage.home.work / "made.txt"
    messages = []
    for number, text in enumerate(("one\n", "two\nthree\n"), 1):
        call = {"file_path": str(path), "content": text}
        messages.append(user(f'work [[sim tool="Write:{quoted(call)}" tokens=2]]'))
        process.write(messages[-1])
        process.wait_result(number)
    first, second = (message["uuid"] for message in messages)
    dry = process.ask("rewind_files", user_message_id=second, dry_run=True)["response"]
    unknown = process.ask("rewind_files", user_message_id="no")["error"]
    stage.note(sizes=[dry["insertions"], dry["deletions"]], unknown=unknown)
    process.ask("rewind_files", user_message_id=second)
    stage.note(back=path.read_text())
    process.ask("rewind_files", user_message_id=first)
    stage.note(gone=not path.exists(), code=process.finish())


@situation
def rewinding_disabled(stage: Stage) -> None:
    """Without the variable nothing is rewound, and the two forms of the request say so."""
    process = stage.start()
    process.write(message := user("hello [[sim tokens=2]]"))
    process.wait_result()
    dry = process.ask("rewind_files", user_message_id=message["uuid"], dry_run=True)["response"]
    refused = process.ask("rewind_files", user_message_id=message["uuid"])["error"]
    stage.note(dry=dry, refused=refused, code=process.finish())


@situation
def figures(stage: Stage) -> None:
    """Context usage, settings and cost of a session."""
    process = stage.start()
    process.ask("apply_flag_settings", settings={"env": {"SOME": "value"}})
    process.write(user("hello [[sim tokens=2]]"))
    process.wait_result()
    process.ask("get_context_usage")
    process.ask("get_session_cost")
    settings = process.ask("get_settings")["response"]
    stage.note(effective=settings["effective"], sources=settings["sources"], code=process.finish())


@situation
def odd_requests(stage: Stage) -> None:
    """Requests that ask for nothing that exists."""
    process = stage.start()
    process.ask("cancel_async_message", message_uuid="nobody")
    process.ask("mcp_reconnect", serverName="nobody")
    process.ask("mcp_toggle", serverName="nobody", enabled=True)
    process.ask("set_model", model=None)
    process.ask("nonsense")
    process.write(user("hello [[sim tokens=2]]"))
    stage.note(text=said(process.wait_result()), results=content(process), code=process.finish())
