"""Models that do not answer, answers that must fit a schema, and limits on what a turn or a process may cost.

Callers: none by name; ``tests.conformance.situations`` imports the module so that it registers.
"""

import json
from typing import Final

from tests.conformance.driver import is_init
from tests.conformance.stage import TOUCH, Stage, said, situation, user

SCHEMA: Final = {
    "type": "object", "properties": {"answer": {"type": "integer"}}, "required": ["answer"],
    "additionalProperties": False,
}  # fmt: skip
FITS: Final = 'what [[sim tool="StructuredOutput:{\\"answer\\": 4}"]]'
DOES_NOT_FIT: Final = 'what [[sim tool="StructuredOutput:{\\"answer\\": \\"x\\"}" tokens=2]]'


@situation
def fallback_from_an_overloaded_model(stage: Stage) -> None:
    """529: the fallback is asked after three tries; the next turn is the first model's again."""
    flags = (f"--session-id={stage.session_id}", "--fallback-model=claude-haiku-5-5")
    process = stage.start(*flags, CLAUDE_CODE_MAX_RETRIES="2")
    process.write(user("hello [[sim tokens=3 error=529 error_model=sonnet]]"))
    text = said(process.wait_result())
    process.write(user("again [[sim tokens=3]]"))
    again = process.wait_result(2)
    models = [frame["message"]["model"].split("-")[1] for frame in process.frames if frame.get("type") == "assistant"]
    stage.note(text=text, again=said(again), models=models, code=process.finish())


@situation
def fallback_from_a_failing_model(stage: Stage) -> None:
    """500: the next model of the list is asked at once, and so on; the last one's error is the turn's."""
    flags = (f"--session-id={stage.session_id}", "--fallback-model=claude-haiku-5-5,claude-opus-5-5")
    process = stage.start(*flags, CLAUDE_CODE_MAX_RETRIES="0")
    process.write(user("hello [[sim tokens=3 error=500 error_model=sonnet]]"))
    process.wait_result()
    process.write(user("all [[sim tokens=3 error=500 error_model=claude]]"))
    process.wait_result(2)
    switched = [frame["fallback_model"] for frame in process.frames if frame.get("subtype") == "model_fallback"]
    stage.note(switched=switched, code=process.finish())


@situation
def fallback_from_an_unknown_model(stage: Stage) -> None:
    """404: the fallback is asked at once."""
    flags = (f"--session-id={stage.session_id}", "--model=claude-unknown-1", "--fallback-model=claude-haiku-5-5")
    process = stage.start(*flags, CLAUDE_CODE_MAX_RETRIES="0")
    process.write(user("hello [[sim tokens=3]]"))
    stage.note(text=said(process.wait_result()), code=process.finish())


@situation
def no_fallback_from_a_rate_limit(stage: Stage) -> None:
    """429 is not evaded, and 529 is not without retries."""
    flags = (f"--session-id={stage.session_id}", "--fallback-model=claude-haiku-5-5")
    process = stage.start(*flags, CLAUDE_CODE_MAX_RETRIES="0")
    for number, status in enumerate((429, 529), 1):
        process.write(user(f"hello [[sim error={status} error_model=sonnet]]"))
        stage.note(**{f"status_{status}": process.wait_result(number)["api_error_status"]})
    stage.note(code=process.finish())


@situation
def retries(stage: Stage) -> None:
    """A refused request is tried again as often as the environment allows, and each retry is told."""
    process = stage.start(CLAUDE_CODE_MAX_RETRIES="1")
    for number, status in enumerate((529, 500), 1):
        process.write(user(f"hello [[sim error={status}]]"))
        process.wait_result(number)
    told = [frame["error_status"] for frame in process.frames if frame.get("subtype") == "api_retry"]
    stage.note(told=told, code=process.finish())


@situation
def structured_output(stage: Stage) -> None:
    """A schema given late: what the model gives through the tool is in the result; one that does not is reminded."""
    process = stage.start()
    process.ask("initialize", jsonSchema=SCHEMA)
    process.write(user(FITS))
    stage.note(first=process.wait_result()["structured_output"])
    process.write(user("hello [[sim tokens=3]]"))
    stage.note(second="structured_output" in process.wait_result(2))
    process.write(user(DOES_NOT_FIT))
    stage.note(third="structured_output" in process.wait_result(3))
    process.ask("initialize", jsonSchema={"type": "object", "required": ["other"]})
    process.write(user(FITS))
    stage.note(fourth=process.wait_result(4)["structured_output"], code=process.finish())


@situation
def structured_output_by_flag(stage: Stage) -> None:
    """The same schema on the command line."""
    process = stage.start(f"--session-id={stage.session_id}", f"--json-schema={json.dumps(SCHEMA)}")
    process.write(user(FITS))
    result = process.wait_result()
    listed = "StructuredOutput" in process.wait(is_init)["tools"]
    stage.note(given=result["structured_output"], text=said(result), listed=listed, code=process.finish())


@situation
def no_schema(stage: Stage) -> None:
    """An object that is no schema is taken and forgotten: the tool does not exist."""
    process = stage.start()
    answer = process.ask("initialize", jsonSchema={"type": "bogus"})
    process.write(user(FITS))
    result = process.wait_result()
    stage.note(answer=answer["subtype"], given="structured_output" in result, code=process.finish())


@situation
def turn_limit(stage: Stage) -> None:
    """``--max-turns`` counts the requests of one turn; the next turn has its own."""
    process = stage.start(f"--session-id={stage.session_id}", "--max-turns=2")
    process.write(user('one [[sim tool="Bash:echo hi" tool_times=3]]'))
    stage.note(limited=process.wait_result()["subtype"])
    process.write(user('two [[sim tool="Bash:echo hi" tokens=2]]'))
    stage.note(within=process.wait_result(2)["subtype"], code=process.finish())


@situation
def budget(stage: Stage) -> None:
    """``--max-budget-usd`` is what the whole process may cost; once it is spent, every turn ends without a request."""
    process = stage.start(f"--session-id={stage.session_id}", "--max-budget-usd=0.0001")
    process.write(user("one [[sim tokens=3]]"))
    first = process.wait_result()["total_cost_usd"]
    process.write(user("two [[sim tokens=3]]"))
    stage.note(costs_nothing=process.wait_result(2)["total_cost_usd"] == first, code=process.finish())


@situation
def budget_and_a_tool(stage: Stage) -> None:
    """The budget is looked at before a tool runs; its prompt is out by then, and is never withdrawn."""
    process = stage.start(f"--session-id={stage.session_id}", "--max-budget-usd=0.0001")
    process.write(user(TOUCH))
    process.wait_result()
    stage.note(ran=stage.touched, code=process.finish())
