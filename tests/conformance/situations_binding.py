"""What is given to a running process: credential, prompt, model, mode, settings, MCP servers, lines it ignores.

Callers: none by name; ``tests.conformance.situations`` imports the module so that it registers.
"""

import socket

from tests.conformance.driver import is_init
from tests.conformance.stage import (
    BAD_TOKEN,
    TOKEN,
    Stage,
    bind_token,
    said,
    situation,
    user,
)


@situation
def late_bind(stage: Stage) -> None:
    """Credential, prompt, model, mode, permission rules and the first message in one burst to a warm process."""
    process = stage.start(token=None)
    process.write(
        bind_token(TOKEN),
        process.control("initialize", systemPrompt=["You are a pirate."]),
        process.control("set_model", model="haiku"),
        process.control("set_permission_mode", mode="acceptEdits"),
        process.control("apply_flag_settings", settings={"permissions": {"allow": ["Bash(echo:*)"]}}),
        user("hello [[sim tokens=5]]"),
    )
    result = process.wait_result()
    stage.note(text=said(result), mode=process.wait(is_init)["permissionMode"], code=process.finish())


@situation
def no_credential(stage: Stage) -> None:
    """Without a credential a turn ends in an error; an API key given later, through the settings, pays for the next."""
    process = stage.start(token=None)
    process.write(user("hello"))
    stage.note(is_error=process.wait_result()["is_error"])
    process.ask("apply_flag_settings", settings={"env": {"ANTHROPIC_API_KEY": "dummy-api-key-1"}})
    process.write(user("hello [[sim tokens=3]]"))
    stage.note(text=said(process.wait_result(2)), source=process.wait(is_init, 2)["apiKeySource"])
    stage.note(code=process.finish())


@situation
def models_refused(stage: Stage) -> None:
    """A full model name is asked of the API: an unknown one is refused, and any with a bad token; an alias never is."""
    process = stage.start(CLAUDE_CODE_MAX_RETRIES="0")
    process.ask("initialize")
    asked = [process.ask("set_model", model="claude-unknown-1"), process.ask("set_model", model="claude-opus-5-5")]
    process.write(bind_token(BAD_TOKEN))
    asked += [process.ask("set_model", model="claude-made-up-1"), process.ask("set_model", model="haiku")]
    stage.note(answers=[answer["subtype"] for answer in asked], code=process.finish())


@situation
def mcp_server_refuses(stage: Stage) -> None:
    """An MCP server that cannot be reached is named in the answer's ``errors``; the next turn works."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    process = stage.start()
    process.ask("initialize")
    servers = {"acme": {"type": "http", "url": f"http://127.0.0.1:{port}/mcp"}}
    answer = process.ask("mcp_set_servers", servers=servers)["response"]
    status = process.ask("mcp_status")["response"]["mcpServers"]
    process.write(user("hello [[sim tokens=3]]"))
    process.wait_result()
    stage.note(errors=sorted(answer["errors"]), added=answer["added"], removed=answer["removed"])
    stage.note(servers=[(server["name"], server["status"]) for server in status], code=process.finish())


@situation
def second_initialize(stage: Stage) -> None:
    """A second ``initialize`` is answered and does not replace the system prompt."""
    process = stage.start()
    first = process.ask("initialize", systemPrompt=["You are the first."])
    second = process.ask("initialize", systemPrompt=["You are the second."])
    process.write(user("hello [[sim tokens=3]]"))
    process.wait_result()
    stage.note(answers=[first["subtype"], second["subtype"]], code=process.finish())


@situation
def settings_of_a_session(stage: Stage) -> None:
    """Model, mode and thinking budget changed between two turns show in the next ``system/init``."""
    process = stage.start()
    process.ask("initialize")
    process.write(user("hello [[sim tokens=3]]"))
    process.wait_result()
    process.ask("set_permission_mode", mode="plan")
    process.ask("set_max_thinking_tokens", max_thinking_tokens=2000)
    process.write(user("again [[sim tokens=3]]"))
    process.wait_result(2)
    stage.note(modes=[frame["permissionMode"] for frame in process.frames if is_init(frame)], code=process.finish())


@situation
def harmless_lines(stage: Stage) -> None:
    """A blank line, an unknown type, a keep-alive, an unknown control and an interrupt while idle do no harm."""
    process = stage.start()
    process.write("", {"type": "no_such_type"}, {"type": "keep_alive"})
    answer = process.ask("no_such_subtype")
    process.ask("interrupt")
    process.write(user("hello [[sim tokens=3]]"))
    stage.note(answer=answer["subtype"], text=said(process.wait_result()), code=process.finish())


@situation
def session_states(stage: Stage) -> None:
    """With the environment's opt-in, the process tells when it runs and when it is idle."""
    process = stage.start(CLAUDE_CODE_EMIT_SESSION_STATE_EVENTS="1")
    process.write(user("hello [[sim tokens=3]]"))
    process.wait(lambda frame: frame.get("subtype") == "session_state_changed" and frame["state"] == "idle")
    states = [frame["state"] for frame in process.frames if frame.get("subtype") == "session_state_changed"]
    stage.note(states=states, code=process.finish())
