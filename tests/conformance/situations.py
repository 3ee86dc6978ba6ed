"""What the simulator and the real CLI are put through: one function per situation, the same for every subject.

A situation drives processes through a ``Stage`` and notes facts that must be equal for all subjects (did the tool run?
is the conversation remembered?).  What the processes say is recorded by the driver and compared by ``comparison``.
Caller: ``recording``.  To add one: write the function, decorate it, run the suite, and read what it complains about.
"""

import socket
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from simulator.messages_api import MessagesApi
from tests.conformance.driver import Frame, Process, is_delta, is_init, is_permission_prompt
from tests.real_cli.launch import FLAGS, Home, environment

TOKEN: Final = "dummy-oauth-token-1"
BAD_TOKEN: Final = "bad-dummy-token"
TOUCH: Final = '[[sim tool="Bash:touch made-by-the-tool"]]'


class Stage:
    """Where one situation plays for one subject: its directories, its API, its processes, the facts it notes."""

    def __init__(self, command: list[str], root: Path, api: MessagesApi, extra: Mapping[str, str]) -> None:
        self.api = api
        self.home = Home.make(root)
        self.session_id = str(uuid.uuid4())
        self.processes: list[Process] = []
        self.facts: dict[str, Any] = {}
        self._command = command
        self._extra = dict(extra)

    def start(self, *flags: str, token: str | None = TOKEN, **variables: str) -> Process:
        """A process that is proven ready, with ``token`` bound late; ``flags`` take the place of the session id."""
        process = self.spawn(*flags, **variables)
        process.ask("get_binary_version")
        if token is not None:
            process.write(bind_token(token))
        return process

    def spawn(self, *flags: str, **variables: str) -> Process:
        """The same without waiting for it and without a credential."""
        chosen = flags or (f"--session-id={self.session_id}",)
        extra = {**self._extra, **variables}
        process = Process([*self._command, *FLAGS, *chosen], self.home, environment(self.home, self.api.url, extra))
        self.processes.append(process)
        return process

    def note(self, **facts: Any) -> None:
        self.facts.update(facts)

    def close(self) -> None:
        for process in self.processes:
            process.close()

    @property
    def touched(self) -> bool:
        """The tool call of ``TOUCH`` really ran."""
        return (self.home.work / "made-by-the-tool").exists()


Situation = Callable[[Stage], None]
SITUATIONS: dict[str, Situation] = {}


def situation(play: Situation) -> Situation:
    SITUATIONS[play.__name__] = play
    return play


def bind_token(token: str) -> Frame:
    return {"type": "update_environment_variables", "variables": {"CLAUDE_CODE_OAUTH_TOKEN": token}}


def user(text: str) -> Frame:
    message = {"role": "user", "content": text}
    return {"type": "user", "message": message, "parent_tool_use_id": None, "uuid": str(uuid.uuid4())}


def permit(prompt: Frame, **decision: Any) -> Frame:
    """The answer to a permission prompt."""
    answer = {"subtype": "success", "request_id": prompt["request_id"], "response": decision}
    return {"type": "control_response", "response": answer}


def await_prompt(process: Process) -> Frame:
    """The permission prompt, once the reply that asked for the tool is over: answering earlier would be a race."""
    prompt = process.wait(is_permission_prompt)
    process.wait(lambda frame: frame.get("event", {}).get("type") == "message_stop")
    return prompt


def said(result: Frame) -> str:
    return str(result.get("result", ""))


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
def api_key_bound_late(stage: Stage) -> None:
    """An API key given through the flag settings' environment pays for the turn."""
    process = stage.start(token=None)
    process.ask("apply_flag_settings", settings={"env": {"ANTHROPIC_API_KEY": "dummy-api-key-1"}})
    process.write(user("hello [[sim tokens=3]]"))
    process.wait_result()
    stage.note(source=process.wait(is_init)["apiKeySource"], code=process.finish())


@situation
def no_credential(stage: Stage) -> None:
    """A message to a process that was never given a credential ends in an error result, and the process lives on."""
    process = stage.start(token=None)
    process.write(user("hello"))
    stage.note(is_error=process.wait_result()["is_error"], code=process.finish())


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
    process.write(permit(await_prompt(process), behavior="deny", message="stop", interrupt=True))
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
    """An interrupt in the same burst as its message."""
    process = stage.start()
    process.ask("initialize")
    process.write(user("hello [[sim tokens=3 ttft_ms=200]]"), process.control("interrupt"))
    process.wait_result()
    process.write(user("next [[sim tokens=3]]"))
    stage.note(text=said(process.wait_result(2)), code=process.finish())


@situation
def interrupt_with_later_message(stage: Stage) -> None:
    """The same burst in a process that has had a turn before."""
    process = stage.start()
    process.write(user("hello [[sim tokens=3]]"))
    process.wait_result()
    process.write(user("again [[sim tokens=3 ttft_ms=300]]"), process.control("interrupt"))
    stage.note(text=said(process.wait_result(2)), code=process.finish())


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
def interrupt_idle(stage: Stage) -> None:
    """An interrupt without a turn is answered and changes nothing."""
    process = stage.start()
    process.ask("interrupt")
    process.write(user("hello [[sim tokens=3]]"))
    stage.note(text=said(process.wait_result()), code=process.finish())


@situation
def unauthorized(stage: Stage) -> None:
    """A credential that the API refuses ends the turn with an error and the process lives on."""
    process = stage.start(token=BAD_TOKEN, CLAUDE_CODE_MAX_RETRIES="0")
    process.write(user("hello"))
    process.wait_result()
    process.write(bind_token(TOKEN), user("again [[sim tokens=3]]"))
    stage.note(text=said(process.wait_result(2)), code=process.finish())


@situation
def overloaded(stage: Stage) -> None:
    """An overloaded API ends the turn with an error at once when retries are off."""
    process = stage.start(CLAUDE_CODE_MAX_RETRIES="0")
    process.write(user("hello [[sim error=529]]"))
    process.wait_result()
    process.write(user("again [[sim tokens=3]]"))
    stage.note(text=said(process.wait_result(2)), code=process.finish())


@situation
def api_errors(stage: Stage) -> None:
    """429, 400 and 500 of the API end their turns with an error, one after the other in the same process."""
    process = stage.start(CLAUDE_CODE_MAX_RETRIES="0")
    statuses = []
    for number, status in enumerate((429, 400, 500), 1):
        process.write(user(f"hello [[sim error={status}]]"))
        statuses.append(process.wait_result(number)["api_error_status"])
    stage.note(statuses=statuses, code=process.finish())


@situation
def unknown_model_flag(stage: Stage) -> None:
    """A model name that the API does not know, given at launch, fails at the first turn."""
    flags = (f"--session-id={stage.session_id}", "--model=claude-unknown-1")
    process = stage.start(*flags, CLAUDE_CODE_MAX_RETRIES="0")
    process.write(user("hello"))
    stage.note(status=process.wait_result()["api_error_status"], code=process.finish())


@situation
def unknown_model_set(stage: Stage) -> None:
    """A model name that the API does not know, set in the running process."""
    process = stage.start(CLAUDE_CODE_MAX_RETRIES="0")
    process.ask("initialize")
    process.ask("set_model", model="claude-unknown-1")
    stage.note(code=process.finish())


@situation
def resume(stage: Stage) -> None:
    """A second process with ``--resume`` remembers what the first was told, under the same session id."""
    process = stage.start()
    process.write(user("my number is 4711"))
    process.wait_result()
    process.finish()
    process = stage.start(f"--resume={stage.session_id}")
    process.write(user("what was it"))
    result = process.wait_result()
    stage.note(remembers="Earlier messages of yours: 1." in said(result), same=result["session_id"] == stage.session_id)
    stage.note(code=process.finish())


@situation
def fork(stage: Stage) -> None:
    """``--fork-session`` remembers the conversation under a new session id."""
    process = stage.start()
    process.write(user("my number is 4711"))
    process.wait_result()
    process.finish()
    process = stage.start(f"--resume={stage.session_id}", "--fork-session")
    process.write(user("what was it"))
    result = process.wait_result()
    stage.note(remembers="Earlier messages of yours: 1." in said(result), same=result["session_id"] == stage.session_id)
    stage.note(code=process.finish())


@situation
def continue_latest(stage: Stage) -> None:
    """``--continue`` takes up the latest conversation of the directory."""
    process = stage.start()
    process.write(user("my number is 4711"))
    process.wait_result()
    process.finish()
    process = stage.start("--continue")
    process.write(user("what was it"))
    result = process.wait_result()
    stage.note(remembers="Earlier messages of yours: 1." in said(result), same=result["session_id"] == stage.session_id)
    stage.note(code=process.finish())


@situation
def resume_unknown(stage: Stage) -> None:
    """``--resume`` of a conversation that was never written ends the process with an error."""
    process = stage.spawn(f"--resume={stage.session_id}")
    stage.note(code=process.wait_exit(), told=b"No conversation found" in process.stderr)


@situation
def session_id_in_use(stage: Stage) -> None:
    """``--session-id`` of a conversation that was written is refused."""
    process = stage.start()
    process.write(user("hello"))
    process.wait_result()
    process.finish()
    process = stage.spawn(f"--session-id={stage.session_id}")
    stage.note(code=process.wait_exit(), told=b"already in use" in process.stderr)


@situation
def eof_mid_turn(stage: Stage) -> None:
    """End of input in the middle of a turn: the turn is finished, then the process leaves in order."""
    process = stage.start()
    process.write(user("hello [[sim tokens=10 itl_ms=20]]"))
    process.wait(is_delta)
    process.close_stdin()
    stage.note(text=said(process.wait_result()), code=process.wait_exit())


@situation
def bad_json(stage: Stage) -> None:
    """A line that is not JSON ends the process with code 1."""
    process = stage.start()
    process.write("this is not JSON")
    stage.note(code=process.wait_exit(), told=bool(process.stderr))


@situation
def wrong_role(stage: Stage) -> None:
    """A user line whose message has another role ends the process with code 1."""
    process = stage.start()
    line = user("hello")
    line["message"]["role"] = "assistant"
    process.write(line)
    stage.note(code=process.wait_exit(), told=bool(process.stderr))


@situation
def ignored_lines(stage: Stage) -> None:
    """A blank line, a line of unknown type and a keep-alive are ignored."""
    process = stage.start()
    process.write("", {"type": "no_such_type"}, {"type": "keep_alive"}, user("hello [[sim tokens=3]]"))
    stage.note(text=said(process.wait_result()), code=process.finish())


@situation
def sigterm_idle(stage: Stage) -> None:
    """SIGTERM between turns ends the process with 143."""
    process = stage.start()
    process.write(user("hello [[sim tokens=3]]"))
    process.wait_result()
    process.terminate()
    stage.note(code=process.wait_exit())


@situation
def sigterm_mid_turn(stage: Stage) -> None:
    """SIGTERM in the middle of a turn ends the process with 143 and without a result."""
    process = stage.start()
    process.write(user("hello [[sim tokens=500 itl_ms=20]]"))
    process.wait(is_delta, count=3)
    process.terminate()
    stage.note(code=process.wait_exit())


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


@situation
def unknown_control(stage: Stage) -> None:
    """A control request of unknown subtype is answered with an error and harms nothing."""
    process = stage.start()
    answer = process.ask("no_such_subtype")
    process.write(user("hello [[sim tokens=3]]"))
    stage.note(answer=answer["subtype"], text=said(process.wait_result()), code=process.finish())


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
def stream_cut(stage: Stage) -> None:
    """The API's stream breaks off in the middle."""
    process = stage.start(CLAUDE_CODE_MAX_RETRIES="0")
    process.write(user("hello [[sim tokens=10 itl_ms=20 cut_after=4]]"))
    stage.note(is_error=process.wait_result()["is_error"], code=process.finish())


@situation
def session_states(stage: Stage) -> None:
    """With the environment's opt-in, the process tells when it runs and when it is idle."""
    process = stage.start(CLAUDE_CODE_EMIT_SESSION_STATE_EVENTS="1")
    process.write(user("hello [[sim tokens=3]]"))
    process.wait(lambda frame: frame.get("subtype") == "session_state_changed" and frame["state"] == "idle")
    states = [frame["state"] for frame in process.frames if frame.get("subtype") == "session_state_changed"]
    stage.note(states=states, code=process.finish())
