"""Frames in which the CLI tells how it works rather than what it does: without ``verbose`` clients do not get them.

Pure.  Caller: ``broker.sessions.interpreter``, which acts on some of them before it leaves them out.  A frame that is
not in the table reaches every client, also one of a type that nobody knew when this was written.
"""

from typing import Final

import msgspec
from msgspec import Struct

from protocol.cli import Peek
from protocol.controls import DECODE_ERRORS

REPLAY: Final = "user/replay"
STATUS: Final = "system/status"
LIFECYCLE: Final = "command_lifecycle"

TRACES: Final[dict[str, str]] = {
    REPLAY: "a message of a client comes back when the CLI takes it in; broker.message has told it",
    LIFECYCLE: "what the CLI does with a message: accepted, broker.message and its terminal frame say it",
    "autocompact_state": "how full the context is before it is compacted; get_context_usage tells it when asked",
    STATUS: "a request is on its way; other states, and a change of the permission mode, are told",
    "system/control_request_progress": "the progress of the broker's own requests to the CLI",
    "system/hook_progress": "output of a hook that runs",
    "system/hook_response": "output of a hook that has ended; what it stopped is told by informational",
    "system/hook_started": "a hook begins",
    "system/thinking_tokens": "a running estimate; thinking_delta and the turn's usage tell the same",
}
"""Name to why it is left out.  The names are labels of ``broker_cli_frames_quieted_total``."""
TRACE_TYPES: Final = frozenset(name for name in TRACES if "/" not in name)


class Lifecycle(Struct, frozen=True):
    """``command_lifecycle``: what became of the message ``command_uuid``."""

    command_uuid: str = ""
    state: str = ""

    @property
    def is_taken(self) -> bool:
        """A turn has begun with the message, or has taken it in."""
        return self.state == "started"

    @property
    def is_unread(self) -> bool:
        """It will never be part of a turn, if it is not already."""
        return self.state in ("cancelled", "discarded", "refused")

    @property
    def is_over(self) -> bool:
        """The CLI is done with it."""
        return self.state == "completed" or self.is_unread


class _User(Struct, frozen=True):
    uuid: str = ""
    isReplay: bool = False


class _Status(Struct, frozen=True):
    status: str | None = None
    permissionMode: str | None = None


_lifecycle = msgspec.json.Decoder(Lifecycle)
_user = msgspec.json.Decoder(_User)
_status = msgspec.json.Decoder(_Status)


def trace_name(found: Peek, line: bytes) -> str | None:
    """The name of a frame that only ``verbose`` shows, or None.  Of a ``user`` frame ``replayed`` tells it."""
    name = f"system/{found.subtype}" if found.type == "system" else found.type
    if name not in TRACES or (name == STATUS and not _is_request_status(line)):
        return None
    return name


def replayed(line: bytes) -> str | None:
    """The id of the user message that the CLI says again in ``line``, now that it takes it in; None if it is none."""
    if b'"isReplay"' not in line:
        return None
    try:
        found = _user.decode(line)
    except DECODE_ERRORS:
        return None
    return found.uuid if found.isReplay else None


def lifecycle(line: bytes) -> Lifecycle:
    """What ``line`` says of a message; nothing of none when it is not of the documented form."""
    try:
        return _lifecycle.decode(line)
    except DECODE_ERRORS:
        return Lifecycle()


def _is_request_status(line: bytes) -> bool:
    try:
        found = _status.decode(line)
    except DECODE_ERRORS:
        return False
    return found.status == "requesting" and found.permissionMode is None
