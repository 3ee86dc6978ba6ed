"""A stand-in for the Claude Code CLI in bidirectional stream-json mode: ``python -m simulator.cli FLAGS``.

It speaks the protocol of 2.1.329 with the real program's flags, frames, order and exit codes, remembers conversations
like it, runs Bash for real, and needs neither network nor account.  What the model "says" is asked for in the user's
text (``simulator.directives``); faults come from there and from ``SIMULATOR_FAULTS``; ``SIMULATOR_LEDGER`` names a file
that records every line (``simulator.ledger``).

Standard library only, one thread, blocking I/O.  Callers: the broker in simulated mode, tests, the bench.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from simulator import faults, messages, tools, transcript
from simulator.directives import DirectiveError, Directives, parse_words
from simulator.flag_values import UsageError, warnings
from simulator.flags import Flags, parse
from simulator.ids import random_uuid
from simulator.intake import Intake, LineTooLong
from simulator.ledger import Ledger, open_ledger
from simulator.output import Output
from simulator.session import Leave, Session
from simulator.settings import Settings
from simulator.transcript import NoConversation, Transcript

SIGTERM_CODE = 143
_BYPASS = "--dangerously-skip-permissions cannot be used with root/sudo privileges for security reasons"
_RESUME_NEEDS_ID = (
    "Error: --resume requires a valid session ID or session title when used with --print. "
    "Usage: claude -p --resume <session-id|title>"
)


class StartFailure(Exception):
    """The process cannot start: ``text`` goes to stderr and into a zeroed ``result``, with ``reason`` if any."""

    def __init__(self, text: str, *, session_id: str | None = None, reason: str | None = None) -> None:
        super().__init__(text)
        self.text = text
        self.session_id = session_id or random_uuid()
        self.reason = reason


def main(arguments: Sequence[str]) -> int:
    """Run one process to its end; returns the exit code.

    0: stdin ended, or SIGINT.  1: bad usage, bad input, or the last turn failed.  143: SIGTERM.
    """
    try:
        flags = parse(arguments)
        wanted = parse_words(os.environ.get("SIMULATOR_FAULTS", ""))
        if flags.version:
            os.write(1, f"{wanted.version or messages.VERSION} (Claude Code)\n".encode())
            return 0
        ledger = open_ledger()
        return _start(flags, wanted, ledger, [*arguments])
    except (UsageError, Leave) as error:
        _complain(str(error))
        return error.code if isinstance(error, Leave) else 1
    except DirectiveError as error:
        _complain(f"Error: SIMULATOR_FAULTS: {error}")
        return 1
    except LineTooLong:
        _complain("Error parsing streaming input line: it is too long")
        return 1
    except BrokenPipeError:
        return 1  # nobody listens any more: there is nobody to tell
    finally:
        tools.kill_running()


def _start(flags: Flags, wanted: Directives, ledger: Ledger | None, arguments: list[str]) -> int:
    signal.signal(signal.SIGTERM, lambda _number, _frame: _terminate(None))
    if ledger is not None:
        ledger.meta(arguments)
    faults.at_start(wanted)
    output, intake = Output(ledger), Intake(ledger)
    intake.listen_to_signals()
    try:
        conversation = _open_conversation(flags, wanted)
    except StartFailure as failure:
        output.send(messages.startup_failure(failure.session_id, failure.text, failure.reason))
        _complain(failure.text)
        return 1
    settings = Settings(flags)
    paid = settings.credential()
    is_subscriber = paid is not None and paid.kind == "oauth_token"
    for text in warnings(flags.effort, flags.betas, is_subscriber=is_subscriber):
        _complain(text)
    session = Session(flags, settings, conversation, intake, output, wanted)
    if not wanted.ignore_term:
        signal.signal(signal.SIGTERM, lambda _number, _frame: _terminate(session))
    return session.run()


def _open_conversation(flags: Flags, wanted: Directives) -> Transcript:
    """A new conversation, or the one to go on with; raises ``StartFailure`` and ``UsageError``."""
    if flags.may_bypass and os.geteuid() == 0 and os.environ.get("IS_SANDBOX") != "1":
        if not os.environ.get("CLAUDE_CODE_STARTUP_FAILURE_RESULTS"):
            raise UsageError(_BYPASS)
        raise StartFailure(_BYPASS, session_id=flags.session_id, reason="bypass_root")
    cwd = os.getcwd()
    if flags.session_id is not None and not transcript.is_uuid(flags.session_id):
        raise UsageError("Error: Invalid session ID. Must be a valid UUID.")
    if flags.session_id is not None and transcript.find(flags.session_id, cwd):
        raise UsageError(f"Error: Session ID {flags.session_id} is already in use.")
    if flags.resume == "":
        raise StartFailure(_RESUME_NEEDS_ID)
    earlier = flags.resume or (transcript.latest(cwd) if flags.continue_latest else None)
    own = flags.session_id or random_uuid()
    version = wanted.version or messages.VERSION
    found = Transcript(own if flags.fork or not earlier else earlier, cwd, version, persist=flags.persist)
    if earlier is not None:
        try:
            found.take_up(earlier, cwd, flags.resume_at)
        except NoConversation as error:
            raise StartFailure(f"No conversation found with session ID: {earlier}", session_id=earlier) from error
    return found


def _terminate(session: Session | None) -> NoReturn:
    """SIGTERM: kill the tools, say what was spent and go, turn or no turn; what was written stays resumable."""
    tools.kill_running()
    if session is not None:
        with contextlib.suppress(OSError):
            session.transcript.note_costs(session.usage.state())
    os._exit(SIGTERM_CODE)


def _complain(text: str) -> None:
    os.write(2, f"{text}\n".encode(errors="replace"))


if __name__ == "__main__":
    # Not sys.exit(): taking the interpreter down costs milliseconds, and nothing is buffered.
    os._exit(main(sys.argv[1:]))
