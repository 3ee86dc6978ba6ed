"""Slash commands that the CLI carries out itself, without asking the model: ``/clear``, ``/cost``, ``/model``.

A text that begins with ``/`` and is none of these goes to the model, as with the real program.
Caller: ``simulator.turn``.
"""

from typing import TYPE_CHECKING, Final

from simulator import messages, models
from simulator.ids import new_uuid, random_uuid, timestamp
from simulator.transcript import Transcript
from simulator.usage import Usage

if TYPE_CHECKING:
    from simulator.session import Session

COMMANDS: Final = frozenset({"clear", "cost", "model", "usage"})


def split(text: str) -> tuple[str, str] | None:
    """(command, rest) of a text that is one of the commands, else None."""
    name, _, rest = text.strip().removeprefix("/").partition(" ")
    return (name, rest.strip()) if text.startswith("/") and name in COMMANDS else None


def clear(session: "Session", uuid: str) -> None:
    """Forget the conversation: a new session id, a new transcript, costs from zero."""
    number = new_uuid()
    head = {"type": "conversation_reset", "new_conversation_id": number, "uuid": number, "trigger": "clear"}
    mark = {"user_message_uuid": uuid} if uuid else {}
    session.send({**head, **mark, "timestamp": timestamp(), "session_id": session.session_id})
    session.system("background_tasks_changed", tasks=[])
    session.transcript.flush()
    session.transcript = Transcript(random_uuid(), session.cwd, session.version, persist=session.flags.persist)
    session.usage = Usage()
    session.limits = ""


def run(session: "Session", name: str, rest: str) -> str:
    """Carry out a command that prints something; returns what it prints."""
    if name != "model":
        return f"Estimated cost:        ${session.usage.total_cost_usd:.4f}"
    if rest not in models.ALIASES and not models.is_known(rest):
        return f"Model '{rest}' not found"
    session.settings.set_model(rest)
    return f"Set model to `{models.find(session.settings.model).title}` for this session only"


def printed(session: "Session", name: str, rest: str, text: str) -> messages.Message:
    """The assistant message that shows what a command printed."""
    extra = {"local_command_source": f"<local-command-stdout>{text}</local-command-stdout>"}
    run_as = {"command": name, "args": rest}
    return messages.synthetic(session.session_id, text, "end_turn", [], **extra, local_command_run=run_as)
