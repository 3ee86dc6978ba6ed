"""What the CLI asks its host: hooks, servers that live in the host, questions of MCP servers, dialogs.

Callers: none by name; ``tests.conformance.situations`` imports the module so that it registers.
"""

import json
from typing import Any, Final

from tests.conformance.driver import Frame, Process, is_init
from tests.conformance.stage import TOUCH, Stage, await_prompt, permit, said, situation, user
from tests.kit.mcp_child import configuration, mcp_server

TOOL: Final = {
    "name": "add",
    "description": "Add two numbers",
    "inputSchema": {"type": "object", "properties": {"a": {"type": "number"}}, "required": ["a"]},
}
CALL_HOST: Final = r'[[sim tokens=2 tool="mcp__x__add:{\"a\": 1}"]]'
CALL_ACME: Final = r'[[sim tokens=2 tool="mcp__acme__add:{\"a\": 4200, \"b\": 42}"]]'
ASK_ACME: Final = r'[[sim tokens=2 tool="mcp__acme__ask:{\"question\": \"Which colour?\"}"]]'
QUESTION: Final = {
    "questions": [{
        "question": "Which colour?", "header": "Colour", "multiSelect": False,
        "options": [{"label": "red", "description": "r"}, {"label": "blue", "description": "b"}],
    }],
}  # fmt: skip


def asked(process: Process, subtype: str, count: int = 1) -> Frame:
    """The ``count``-th request of that kind."""
    return process.wait(lambda frame: frame.get("request", {}).get("subtype") == subtype, count)


def asked_of_hook(process: Process, count: int = 1) -> Frame:
    """The ``count``-th question to a hook before a tool, once the reply that calls the tool is over."""
    request = asked(process, "hook_callback", count)
    process.wait(lambda frame: frame.get("event", {}).get("type") == "message_stop")
    return request


def reply(process: Process, request: Frame, response: Any) -> None:
    """Answer a request of the CLI's; a text is an error."""
    body: Frame = {"subtype": "success", "request_id": request["request_id"], "response": response}
    if isinstance(response, str):
        body = {"subtype": "error", "request_id": request["request_id"], "error": response}
    process.write({"type": "control_response", "response": body})


def hook(*ids: str, **more: Any) -> list[Frame]:
    return [{"hookCallbackIds": list(ids), "timeout": 20, **more}]


def before_tool(**decision: Any) -> Frame:
    """The answer of a PreToolUse hook."""
    return {"hookSpecificOutput": {"hookEventName": "PreToolUse", **decision}}


def quoted(value: Any) -> str:
    """JSON inside the quotes of a directive."""
    return json.dumps(value).replace("\\", "\\\\").replace('"', '\\"')


def content(process: Process) -> list[Any]:
    """What the tools answered."""
    blocks = [frame["message"]["content"][0] for frame in process.frames if frame.get("type") == "user"]
    return [block["content"] for block in blocks if block["type"] == "tool_result"]


@situation
def hook_denies(stage: Stage) -> None:
    """A PreToolUse hook denies a call that a rule allows; the next call it allows without a prompt."""
    process = stage.start()
    process.ask("initialize", hooks={"PreToolUse": hook("h", matcher="Bash")})
    process.ask("apply_flag_settings", settings={"permissions": {"allow": ["Bash(touch:*)"]}})
    process.write(user(f"work {TOUCH}"))
    decision = before_tool(permissionDecision="deny", permissionDecisionReason="not here")
    reply(process, asked_of_hook(process), decision)
    process.wait_result()
    stage.note(touched_when_denied=stage.touched)
    process.ask("apply_flag_settings", settings={"permissions": {"allow": []}})
    process.write(user(f"again {TOUCH}"))
    reply(process, asked(process, "hook_callback", 2), before_tool(permissionDecision="allow"))
    process.wait_result(2)
    stage.note(touched=stage.touched, code=process.finish())


@situation
def hook_rewrites(stage: Stage) -> None:
    """A hook replaces the input of a call, and one behind it hears the result."""
    process = stage.start()
    process.ask("initialize", hooks={"PreToolUse": hook("pre", matcher="Bash|Read"), "PostToolUse": hook("post")})
    process.write(user(f"work {TOUCH}"))
    rewritten = before_tool(permissionDecision="allow", updatedInput={"command": "echo instead"})
    reply(process, asked_of_hook(process), rewritten)
    heard = asked(process, "hook_callback", 2)
    reply(process, heard, {})
    process.wait_result()
    stage.note(heard=heard["request"]["input"]["tool_input"], results=content(process), touched=stage.touched)
    stage.note(code=process.finish())


@situation
def hook_asks(stage: Stage) -> None:
    """A hook that wants the user to be asked: the prompt says why."""
    process = stage.start()
    process.ask("initialize", hooks={"PreToolUse": hook("h")})
    process.write(user('work [[sim tool="Bash:echo hi" tokens=2]]'))
    reply(process, asked_of_hook(process), before_tool(permissionDecision="ask", permissionDecisionReason="hm"))
    prompt = await_prompt(process)
    process.write(permit(prompt, behavior="allow", updatedInput=prompt["request"]["input"]))
    process.wait_result()
    stage.note(why=prompt["request"]["decision_reason"], code=process.finish())


@situation
def hook_fails(stage: Stage) -> None:
    """A hook's error answer counts as none: the user is asked."""
    process = stage.start()
    process.ask("initialize", hooks={"PreToolUse": hook("h")})
    process.write(user(f"work {TOUCH}"))
    reply(process, asked_of_hook(process), "the hook broke")
    process.write(permit(await_prompt(process), behavior="deny", message="no"))
    process.wait_result()
    stage.note(touched=stage.touched, code=process.finish())


@situation
def hook_must_not_fail(stage: Stage) -> None:
    """With ``onFailure: block`` an error answer blocks, and so does one that says nothing sensible."""
    process = stage.start()
    process.ask("initialize", hooks={"PreToolUse": hook("h", onFailure="block")})
    # The older version does not know the word: a rule keeps it from asking.
    process.ask("apply_flag_settings", settings={"permissions": {"allow": ["Bash(true)"]}})
    for number, answer in enumerate(("the hook broke", before_tool(permissionDecision="perhaps")), 1):
        process.write(user('work [[sim tool="Bash:true" tokens=2]]'))
        request = asked(process, "hook_callback", number)
        process.wait(lambda frame: frame.get("event", {}).get("type") == "message_stop", 2 * number - 1)
        reply(process, request, answer)
        process.wait_result(number)
    stage.note(code=process.finish())


@situation
def hooks_replaced(stage: Stage) -> None:
    """A second ``initialize`` brings other hooks, a third one none; the answers say so."""
    process = stage.start()
    answers = [process.ask("initialize", hooks={"PreToolUse": hook("one")})["response"]]
    answers.append(process.ask("initialize", hooks={"PreToolUse": hook("two")})["response"])
    process.write(user('work [[sim tool="Bash:echo hi" tokens=2]]'))
    reply(process, asked_of_hook(process), {})
    process.wait_result()
    stage.note(applied=[answer.get("hooks_applied") for answer in answers])
    stage.note(asked=asked(process, "hook_callback")["request"]["callback_id"], code=process.finish())


@situation
def hook_silent(stage: Stage) -> None:
    """A hook that does not answer in time: its request is withdrawn and the call does not run."""
    process = stage.start()
    process.ask("initialize", hooks={"PreToolUse": [{"hookCallbackIds": ["h"], "timeout": 1}]})
    process.write(user(f"work {TOUCH}"))
    process.wait(lambda frame: frame.get("type") == "control_cancel_request")
    process.wait_result()
    stage.note(touched=stage.touched, code=process.finish())


@situation
def hook_ends_the_turn(stage: Stage) -> None:
    """``continue: false`` does not block the call; the turn ends behind it."""
    process = stage.start()
    process.ask("initialize", hooks={"PreToolUse": hook("h")})
    process.write(user('work [[sim tool="Bash:echo hi" tokens=2]]'))
    reply(process, asked_of_hook(process), {"continue": False, "stopReason": "enough"})
    stage.note(why=process.wait_result()["terminal_reason"], ran=content(process), code=process.finish())


@situation
def prompt_hook(stage: Stage) -> None:
    """A UserPromptSubmit hook blocks one prompt, stops at another, and lets a third pass."""
    process = stage.start()
    process.ask("initialize", hooks={"UserPromptSubmit": hook("h")})
    answers: list[Frame] = [{"decision": "block", "reason": "not that"}]
    answers += [{"continue": False, "stopReason": "enough"}, {}]
    texts = []
    for number, answer in enumerate(answers, 1):
        process.write(user("hello [[sim tokens=2]]"))
        reply(process, asked(process, "hook_callback", number), answer)
        texts.append(said(process.wait_result(number)))
    stage.note(texts=texts, code=process.finish())


@situation
def stop_hook(stage: Stage) -> None:
    """A Stop hook sends the model on, once; there is one result."""
    process = stage.start()
    process.ask("initialize", hooks={"Stop": hook("h")})
    process.write(user("hello [[sim tokens=2]]"))
    first = asked(process, "hook_callback")
    reply(process, first, {"decision": "block", "reason": "go on [[sim tokens=3]]"})
    second = asked(process, "hook_callback", 2)
    reply(process, second, {})
    text = said(process.wait_result())
    active = [request["request"]["input"]["stop_hook_active"] for request in (first, second)]
    stage.note(text=text[:4], active=active, code=process.finish())


@situation
def hook_interrupted(stage: Stage) -> None:
    """An interrupt while a hook is asked withdraws the question and ends the turn."""
    process = stage.start()
    process.ask("initialize", hooks={"PreToolUse": hook("h")})
    process.write(user(f"work {TOUCH}"))
    asked(process, "hook_callback")
    process.wait(lambda frame: frame.get("event", {}).get("type") == "message_stop")
    process.ask("interrupt")
    process.wait_result()
    stage.note(touched=stage.touched, code=process.finish())


@situation
def host_server(stage: Stage) -> None:
    """A server of the host: introduced, its tool called and answered; then the call is refused by the host."""
    process = stage.start()
    process.ask("initialize")
    stage.note(answer=process.ask("mcp_set_servers", servers={"x": {"type": "sdk", "name": "x"}})["response"])
    serve_handshake(process)
    process.ask("apply_flag_settings", settings={"permissions": {"allow": ["mcp__x"]}})
    process.write(user(f"work {CALL_HOST}"))
    result = {"content": [{"type": "text", "text": "4242"}], "isError": False}
    reply(process, called := asked_of_server(process, "tools/call"), rpc(called, result))
    process.wait_result()
    process.write(user(f"again {CALL_HOST}"))
    reply(process, asked_of_server(process, "tools/call", 2), "the host refuses")
    process.wait_result(2)
    stage.note(called=called["request"]["message"]["params"]["arguments"], results=content(process))
    rows = [(row["name"], row["status"]) for row in process.ask("mcp_status")["response"]["mcpServers"]]
    stage.note(rows=rows, removed=process.ask("mcp_set_servers", servers={})["response"], code=process.finish())


@situation
def host_server_at_initialize(stage: Stage) -> None:
    """A server that ``initialize`` names is introduced unasked, and the turn begins with it."""
    process = stage.start()
    process.ask("initialize", sdkMcpServers=["x"])
    process.write(user("hello [[sim tokens=2]]"))
    serve_handshake(process)
    process.wait_result()
    servers = process.wait(is_init)["mcp_servers"]
    stage.note(servers=[(server["name"], server["status"]) for server in servers], code=process.finish())


@situation
def host_server_fails(stage: Stage) -> None:
    """A server of the host that the host refuses to introduce: the turn goes on without it."""
    process = stage.start()
    process.ask("initialize")
    process.ask("mcp_set_servers", servers={"x": {"type": "sdk", "name": "x"}})
    reply(process, asked_of_server(process, "initialize"), "it is gone")
    process.write(user(f"work {CALL_HOST}"))
    reply(process, asked_of_server(process, "initialize", 2), "it is gone")
    process.wait_result()
    stage.note(results=content(process), code=process.finish())


@situation
def remote_server(stage: Stage) -> None:
    """A real server behind a bearer token: called, reconnected, switched off and on, refused with another token."""
    with mcp_server(stage.home.work, "secret") as url:
        process = stage.start()
        process.ask("initialize")
        good, bad = ({"acme": configuration(url, token)} for token in ("secret", "wrong"))
        stage.note(added=process.ask("mcp_set_servers", servers=good)["response"])
        process.ask("apply_flag_settings", settings={"permissions": {"allow": ["mcp__acme"]}})
        process.write(user(f"work {CALL_ACME}"))
        process.wait_result()
        steps = [process.ask("mcp_reconnect", serverName="acme"), process.ask("mcp_reconnect", serverName="nobody")]
        steps += [process.ask("mcp_toggle", serverName="acme", enabled=False)]
        off = process.ask("mcp_status")["response"]["mcpServers"]
        steps += [process.ask("mcp_toggle", serverName="acme", enabled=True)]
        steps += [process.ask("mcp_toggle", serverName="nobody", enabled=True)]
        on = process.ask("mcp_status")["response"]["mcpServers"]
        stage.note(refused=process.ask("mcp_set_servers", servers=bad)["response"])
        stage.note(removed=process.ask("mcp_set_servers", servers={})["response"])
        stage.note(results=content(process), steps=[step["subtype"] for step in steps])
        stage.note(statuses=[row["status"] for row in (*off, *on)], code=process.finish())


@situation
def server_asks(stage: Stage) -> None:
    """A tool of a server asks the user: the answer and a refusal reach it."""
    with mcp_server(stage.home.work, "secret", "sse") as url:
        process = stage.start()
        process.ask("initialize")
        process.ask("mcp_set_servers", servers={"acme": configuration(url, "secret")})
        process.ask("apply_flag_settings", settings={"permissions": {"allow": ["mcp__acme"]}})
        answers = ({"action": "accept", "content": {"colour": "blue"}}, {"action": "decline"}, "nobody is there")
        for number, answer in enumerate(answers, 1):
            process.write(user(f"work {ASK_ACME}"))
            reply(process, asked(process, "elicitation", number), answer)
            process.wait_result(number)
        stage.note(results=content(process), code=process.finish())


@situation
def question_and_plan(stage: Stage) -> None:
    """A question with choices is answered in its input; leaving plan mode changes the mode."""
    process = stage.start()
    process.write(user(f'work [[sim tool="AskUserQuestion:{quoted(QUESTION)}" tokens=2]]'))
    prompt = await_prompt(process)
    answered = {**prompt["request"]["input"], "answers": {"Which colour?": "blue"}}
    process.write(permit(prompt, behavior="allow", updatedInput=answered))
    process.wait_result()
    process.ask("set_permission_mode", mode="plan")
    process.write(user('work [[sim tool="ExitPlanMode:{}" tokens=2]]'))
    prompt = process.wait(lambda frame: frame.get("request", {}).get("tool_name") == "ExitPlanMode")
    process.wait(lambda frame: frame.get("event", {}).get("type") == "message_stop", 3)
    process.write(permit(prompt, behavior="allow", updatedInput=prompt["request"]["input"]))
    process.wait_result(2)
    stage.note(answer=content(process)[0], code=process.finish())


def asked_of_server(process: Process, method: str, count: int = 1) -> Frame:
    """The ``count``-th message of that kind for a server of the host."""
    return process.wait(lambda frame: frame.get("request", {}).get("message", {}).get("method") == method, count)


def rpc(request: Frame, result: Frame) -> Frame:
    """A server's answer to a message."""
    return {"mcp_response": {"jsonrpc": "2.0", "id": request["request"]["message"]["id"], "result": result}}


def serve_handshake(process: Process) -> None:
    """Introduce the server ``x`` with its one tool."""
    opening = asked_of_server(process, "initialize")
    version = opening["request"]["message"]["params"]["protocolVersion"]
    info = {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": {"name": "x", "version": "1"}}
    reply(process, opening, rpc(opening, info))
    nothing = {"mcp_response": {"jsonrpc": "2.0", "result": {}}}
    reply(process, asked_of_server(process, "notifications/initialized"), nothing)
    listing = asked_of_server(process, "tools/list")
    reply(process, listing, rpc(listing, {"tools": [TOOL]}))
