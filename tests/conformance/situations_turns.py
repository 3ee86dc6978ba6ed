"""What happens within turns: thinking, tools and their prompts, interrupts, messages that wait.

Callers: none by name; ``tests.conformance.situations`` imports the module so that it registers.
"""

from tests.conformance.driver import is_delta, is_init, is_message_stop
from tests.conformance.stage import TOUCH, Stage, await_prompt, permit, said, situation, user


@situation
def thinking(stage: Stage) -> None:
    """A reply that thinks first: a block of its own before the text."""
    process = stage.start()
    process.write(user("hello [[sim tokens=3 thinking]]"))
    stage.note(text=said(process.wait_result()), code=process.finish())


@situation
def tool_allowed_by_prompt(stage: Stage) -> None:
    """An allowed tool call runs and the model goes on with its result."""
    process = stage.start()
    process.write(user(f"work {TOUCH}"))
    prompt = await_prompt(process)
    process.write(permit(prompt, behavior="allow", updatedInput=prompt["request"]["input"]))
    process.wait_result()
    stage.note(touched=stage.touched, code=process.finish())


@situation
def tool_denied_by_prompt(stage: Stage) -> None:
    """A denied tool call does not run; the model is told and goes on."""
    process = stage.start()
    process.write(user(f"work {TOUCH}"))
    process.write(permit(await_prompt(process), behavior="deny", message="not today"))
    denials = process.wait_result()["permission_denials"]
    stage.note(touched=stage.touched, denied=[denial["tool_name"] for denial in denials], code=process.finish())


@situation
def tool_denied_with_interrupt(stage: Stage) -> None:
    """A denial that also interrupts ends the turn; the next one works."""
    process = stage.start()
    process.write(user(f"work {TOUCH}"))
    prompt = await_prompt(process)
    process.wait(is_message_stop)  # the prompt comes in mid-stream, which would be cut off instead
    process.write(permit(prompt, behavior="deny", message="stop", interrupt=True))
    process.wait_result()
    process.write(user("next [[sim tokens=3]]"))
    stage.note(touched=stage.touched, text=said(process.wait_result(2)), code=process.finish())


@situation
def tools_by_rule(stage: Stage) -> None:
    """Permission rules: one command runs without a prompt, one fails in running, one is denied without a prompt."""
    process = stage.start()
    rules = {"permissions": {"allow": ["Bash(touch:*)", "Bash(false)"], "deny": ["Bash(mkdir:*)"]}}
    process.ask("apply_flag_settings", settings=rules)
    tools = [TOUCH, '[[sim tool="Bash:false"]]', '[[sim tool="Bash:mkdir never-made"]]']
    for number, tool in enumerate(tools, 1):
        process.write(user(f"work {tool}"))
        process.wait_result(number)
    stage.note(touched=stage.touched, made=(stage.home.work / "never-made").exists(), code=process.finish())


@situation
def interrupt_with_message(stage: Stage) -> None:
    """An interrupt in the same burst as its message: the first of the process, then a later one."""
    process = stage.start()
    process.ask("initialize")
    process.write(user("hello [[sim tokens=3 ttft_ms=200]]"), process.control("interrupt"))
    process.wait_result()
    process.write(user("next [[sim tokens=3]]"))
    process.wait_result(2)
    process.write(user("again [[sim tokens=3 ttft_ms=200]]"), process.control("interrupt"))
    stage.note(text=said(process.wait_result(2)), later=said(process.wait_result(3)), code=process.finish())


@situation
def interrupt_at_init(stage: Stage) -> None:
    """An interrupt at the turn's ``system/init`` ends it before the first token; the next turn works."""
    process = stage.start()
    process.write(user("hello [[sim tokens=3 ttft_ms=5000]]"))
    process.wait(is_init)
    process.ask("interrupt")
    process.wait_result()
    process.write(user("next [[sim tokens=3]]"))
    stage.note(text=said(process.wait_result(2)), code=process.finish())


@situation
def interrupt_mid_stream(stage: Stage) -> None:
    """An interrupt between two deltas: the part that was said is kept, the next turn works."""
    process = stage.start()
    process.write(user("hello [[sim tokens=500 itl_ms=20]]"))
    process.wait(is_delta, count=3)
    process.ask("interrupt")
    process.wait_result()
    process.write(user("next [[sim tokens=3]]"))
    stage.note(text=said(process.wait_result(2)), code=process.finish())


@situation
def interrupt_at_prompt(stage: Stage) -> None:
    """An interrupt while a permission prompt is open withdraws the prompt and ends the turn."""
    process = stage.start()
    process.write(user(f"work {TOUCH}"))
    await_prompt(process)
    process.ask("interrupt")
    process.wait_result()
    process.write(user("next [[sim tokens=3]]"))
    stage.note(touched=stage.touched, text=said(process.wait_result(2)), code=process.finish())


@situation
def two_messages(stage: Stage) -> None:
    """A message that comes in the middle of a turn waits and then has a turn of its own."""
    process = stage.start()
    process.write(user("first [[sim tokens=30 itl_ms=20]]"))
    process.wait(is_delta)
    process.write(user("second [[sim tokens=3]]"))
    texts = [said(process.wait_result(1)), said(process.wait_result(2))]
    stage.note(texts=[text[:5] for text in texts], code=process.finish())


@situation
def three_messages(stage: Stage) -> None:
    """Two messages that wait behind a turn share the next one."""
    process = stage.start()
    process.write(user("first [[sim tokens=30 itl_ms=20]]"))
    process.wait(is_delta)
    process.write(user("second [[sim tokens=3]]"), user("third [[sim tokens=4]]"))
    process.wait_result(2)
    code = process.finish()
    stage.note(results=[said(frame) for frame in process.frames if frame["type"] == "result"], code=code)


@situation
def message_during_a_tool(stage: Stage) -> None:
    """A message that comes while a tool waits for its permission is folded into the running turn: one result."""
    process = stage.start()
    process.write(user(f"work {TOUCH}"))
    prompt = await_prompt(process)
    process.write(user("second [[sim tokens=3]]"))
    process.write(permit(prompt, behavior="allow", updatedInput=prompt["request"]["input"]))
    process.wait_result()
    code = process.finish()
    stage.note(results=len([frame for frame in process.frames if frame["type"] == "result"]), code=code)
