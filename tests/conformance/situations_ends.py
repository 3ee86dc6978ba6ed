"""How turns and processes end or begin again: errors of the API, bad input, signals, end of input, resume.

Callers: none by name; ``tests.conformance.situations`` imports the module so that it registers.
"""

import uuid

from tests.conformance.driver import is_delta
from tests.conformance.stage import BAD_TOKEN, TOKEN, Stage, bind_token, said, situation, user


@situation
def unauthorized(stage: Stage) -> None:
    """A credential that the API refuses ends the turn with an error and the process lives on."""
    process = stage.start(token=BAD_TOKEN, CLAUDE_CODE_MAX_RETRIES="0")
    process.write(user("hello"))
    process.wait_result()
    process.write(bind_token(TOKEN), user("again [[sim tokens=3]]"))
    stage.note(text=said(process.wait_result(2)), code=process.finish())


@situation
def api_errors(stage: Stage) -> None:
    """529, 429, 400 and 500 of the API end their turns with an error at once when retries are off; then one works."""
    process = stage.start(CLAUDE_CODE_MAX_RETRIES="0")
    statuses = []
    for number, status in enumerate((529, 429, 400, 500), 1):
        process.write(user(f"hello [[sim error={status}]]"))
        statuses.append(process.wait_result(number)["api_error_status"])
    process.write(user("again [[sim tokens=3]]"))
    stage.note(statuses=statuses, text=said(process.wait_result(5)), code=process.finish())


@situation
def unknown_model_flag(stage: Stage) -> None:
    """A model name that the API does not know, given at launch, fails at the first turn."""
    flags = (f"--session-id={stage.session_id}", "--model=claude-unknown-1")
    process = stage.start(*flags, CLAUDE_CODE_MAX_RETRIES="0")
    process.write(user("hello"))
    stage.note(status=process.wait_result()["api_error_status"], code=process.finish())


@situation
def stream_cut(stage: Stage) -> None:
    """The API's stream breaks off in the middle."""
    process = stage.start(CLAUDE_CODE_MAX_RETRIES="0")
    process.write(user("hello [[sim tokens=10 itl_ms=150 cut_after=4]]"))
    stage.note(is_error=process.wait_result()["is_error"], code=process.finish())


@situation
def resume(stage: Stage) -> None:
    """``--resume`` and ``--continue`` remember, under the same session id; ``--session-id`` of it is refused."""
    process = stage.start()
    process.write(user("my number is 4711"))
    process.wait_result()
    process.finish()
    for number, flag in enumerate((f"--resume={stage.session_id}", "--continue"), 1):
        process = stage.start(flag)
        process.write(user("what was it"))
        result = process.wait_result()
        remembers = f"Earlier messages of yours: {number}." in said(result)
        stage.note(**{f"remembers_{number}": remembers, f"same_{number}": result["session_id"] == stage.session_id})
        stage.note(**{f"code_{number}": process.finish()})
    process = stage.spawn(f"--session-id={stage.session_id}")
    stage.note(code=process.wait_exit(), told=b"already in use" in process.stderr)


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
def known_uuid(stage: Stage) -> None:
    """A message whose uuid the resumed transcript knows is not heard; a fork answers it, and may not write it down."""
    known = user("my number is 4711")
    again = {**known, "message": {"role": "user", "content": "my colour is red"}}
    process = stage.start()
    process.write(known)
    process.wait_result()
    process.finish()
    process = stage.start(f"--resume={stage.session_id}")
    process.write(again)
    process.write(user("what was it"))
    resumed = said(process.wait_result())
    process.finish()
    process = stage.start(f"--resume={stage.session_id}", "--fork-session", f"--session-id={uuid.uuid4()}")
    process.write(again)
    stage.note(resumed=resumed, forked=said(process.wait_result()), code=process.finish())


@situation
def resume_unknown(stage: Stage) -> None:
    """``--resume`` of a conversation that was never written ends the process with an error."""
    process = stage.spawn(f"--resume={stage.session_id}")
    stage.note(code=process.wait_exit(), told=b"No conversation found" in process.stderr)


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
