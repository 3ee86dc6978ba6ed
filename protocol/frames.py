"""Every frame of ``broker.v1`` as a struct: what a client may send and what the broker itself says.

The CLI's own output is not here: it passes through untouched but for its ``seq`` (see ``protocol.codec``).
Broker-shaped frames refuse unknown fields; SDK-shaped ones (``user``, ``control_request``, ``control_response``,
``keep_alive``) drop them.  Over 300 lines because it is one list: the whole vocabulary, in one place to look it up.
"""

from typing import Annotated, Any, Literal, TypeAlias

from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from protocol import codes
from protocol.codes import Applied, DropReason, ErrorCode, FailureReason, LostReason, MissReason, Start, UpstreamError
from protocol.content import Content, DocumentNote, ImageNote, ShortText, TextBlock
from protocol.options import SessionOptions

PROTOCOL_VERSION = 1
SUBPROTOCOL = "broker.v1"
TRACEPARENT = r"^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$(?!\n)"
SESSION_ID = r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$(?!\n)"

MessageId = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[\x21-\x7e]+$(?!\n)")]
"""A message's idempotency key: at most 64 bytes of visible ASCII."""
RequestId = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[\x21-\x7e]+$(?!\n)")]
Role = Literal["controller", "observer"]
View = Literal["cli", "messages"]


class _Strict(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type"):
    """Broker-shaped, from the client."""


class _Lenient(Struct, frozen=True, tag_field="type"):
    """SDK-shaped, from the client."""


class _Reply(Struct, frozen=True, tag_field="type", gc=False):
    """From the broker."""


# -- client to broker ------------------------------------------------------------------------------------------------


class HelloAuth(Struct, frozen=True, forbid_unknown_fields=True):
    """``auth`` of hello.  ``subject`` is for a token of a tenant's servers, which speaks for many."""

    token: Annotated[str, Meta(min_length=1, max_length=4096)] | None = None
    subject: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:@-]{0,127}$(?!\n)")] | None = None

    def __repr__(self) -> str:
        return f"HelloAuth(token=[redacted], subject={self.subject!r})"


class ClientInfo(Struct, frozen=True, forbid_unknown_fields=True):
    """Who connects.  ``instance`` is stable across reconnects of one tab or worker."""

    name: ShortText = ""
    version: ShortText = ""
    instance: ShortText = ""


class SessionRef(Struct, frozen=True, forbid_unknown_fields=True):
    """Which conversation, and where this client stopped reading."""

    mode: Literal["new", "resume", "open", "continue", "fork"] = "new"
    id: Annotated[str, Meta(pattern=SESSION_ID)] | None = None
    epoch: ShortText | None = None
    last_seq: Annotated[int, Meta(ge=0, le=2**53)] | None = None


class Hello(_Strict, frozen=True, tag="broker.hello"):
    """The first frame of a connection."""

    protocol: int = PROTOCOL_VERSION
    auth: HelloAuth | None = None
    traceparent: Annotated[str, Meta(pattern=TRACEPARENT)] | None = None
    client: ClientInfo = ClientInfo()
    session: SessionRef = SessionRef()
    role: Role = "controller"
    view: View = "cli"
    options: SessionOptions = SessionOptions()


class UserBody(Struct, frozen=True):
    """``message`` of an SDK-shaped user frame."""

    content: Content
    role: Literal["user"] = "user"


class User(_Lenient, frozen=True, tag="user"):
    """A user message in the SDK's shape; ``uuid`` is its idempotency key.  ``steer``: hand it to the CLI mid-turn."""

    message: UserBody
    uuid: MessageId | UnsetType = UNSET
    steer: bool = False


class UserMessage(_Strict, frozen=True, tag="user_message"):
    """The same, short form."""

    content: Content
    id: MessageId | UnsetType = UNSET
    steer: bool = False


class ControlRequest(_Lenient, frozen=True, tag="control_request"):
    """``request`` is decoded a second time, by subtype (``protocol.controls``)."""

    request_id: RequestId
    request: Raw


class ControlAnswer(Struct, frozen=True):
    """Body of a client's answer to a CLI request."""

    subtype: Literal["success", "error"]
    request_id: RequestId
    response: Raw | UnsetType = UNSET
    error: Annotated[str, Meta(max_length=4096)] = ""


class ControlResponse(_Lenient, frozen=True, tag="control_response"):
    """A client's answer to a CLI request."""

    response: ControlAnswer


class KeepAlive(_Lenient, frozen=True, tag="keep_alive"):
    """Ignored."""


class Cancel(_Strict, frozen=True, tag="broker.cancel"):
    """Withdraw a queued message."""

    id: MessageId


class Ping(_Strict, frozen=True, tag="broker.ping"):
    """Answered with ``broker.pong`` and the same ``t``."""

    t: float | int | None = None


class End(_Strict, frozen=True, tag="broker.end"):
    """Stop the process, keep the conversation, close every client with 1000."""


class Delete(_Strict, frozen=True, tag="broker.delete"):
    """End the conversation and wipe its directory and its record; closes every client with 4507."""


class History(_Strict, frozen=True, tag="broker.history"):
    """The conversation so far, read from the transcript; ``before`` is the ``uuid`` of the oldest frame known."""

    before: Annotated[str, Meta(min_length=1, max_length=96, pattern=r"^[\x21-\x7e]+$(?!\n)")] | None = None
    limit: Annotated[int, Meta(ge=1, le=200)] = 50


ClientFrame: TypeAlias = (
    Hello | User | UserMessage | ControlRequest | ControlResponse | KeepAlive | Cancel | Ping | End | Delete | History
)  # fmt: skip

# -- broker to client: frames of a connection (no seq, never replayed) -----------------------------------------------


class Replay(Struct, frozen=True, rename={"from_": "from"}):
    """What is replayed right after ``welcome``, both ends included."""

    from_: int
    to: int


class Lost(Struct, frozen=True, rename={"from_": "from"}):
    """Frames that the client asked for and that will not come."""

    from_: int
    to: int | None
    reason: LostReason


class CliInfo(Struct, frozen=True):
    """The process behind the session."""

    version: str
    simulated: bool
    session_id: str


class TurnInfo(Struct, frozen=True):
    """The turn that runs at ``head_seq``; ``steered``: the messages handed to the CLI since, which end with it or
    after it."""

    id: str
    state: str
    first_seq: int
    steered: list[str] = []


class Limits(Struct, frozen=True):
    """The bounds that concern a client; bytes, counts and seconds."""

    max_message_bytes: int
    max_frame_bytes: int
    messages_per_second: float
    messages_burst: int
    queue: int
    replay_frames: int
    replay_bytes: int
    replay_seconds: float


class Welcome(_Reply, frozen=True, tag="broker.welcome"):
    """The session is there: talk.  ``start`` and ``ready_ms`` are null while it has no process."""

    session_id: str
    epoch: str
    head_seq: int
    resumed: bool
    replay: Replay | None
    lost: Lost | None
    start: Start | None
    miss_reason: MissReason | None
    ready_ms: float | None
    role: Role
    view: View
    cli: CliInfo
    options_ignored: list[str]
    turn: TurnInfo | None
    queued: list[str]
    pending: list[Raw]
    limits: Limits
    last_close: codes.LastClose | None = None
    protocol: int = PROTOCOL_VERSION


class Accepted(_Reply, frozen=True, tag="broker.accepted"):
    """The message is the session's now; ``queued`` counts those before it."""

    id: str
    queued: int
    duplicate: bool = False
    outcome: Literal["completed", "failed"] | None = None


class Waiting(_Reply, frozen=True, tag="broker.waiting"):
    """A process is awaited; ``position`` counts from 1."""

    position: int
    reason: str


class Error(_Reply, frozen=True, tag="broker.error"):
    """Something that this client asked for was not done.  ``ref`` names the frame meant."""

    code: ErrorCode
    message: str
    retryable: bool = False
    retry_after_ms: int | None = None
    ref: str | None = None


class Pong(_Reply, frozen=True, tag="broker.pong"):
    """Answer to ``broker.ping``."""

    t: float | int | None


class GoAway(_Reply, frozen=True, tag="broker.go_away"):
    """A planned close follows: keep reading until it comes."""

    reason: str
    reconnect_after_ms: int


class HistoryPage(_Reply, frozen=True, tag="broker.history"):
    """Answer to ``broker.history``: user and assistant frames, oldest first; ``more``: there are older ones."""

    frames: list[Raw]
    more: bool


class ControlReplyBody(Struct, frozen=True, omit_defaults=True):
    """Body of an answer to a client's control request."""

    subtype: Literal["success", "error"]
    request_id: str
    response: Any = UNSET
    error: str | UnsetType = UNSET


class ControlReply(_Reply, frozen=True, tag="control_response"):
    """Answer to a client's control request."""

    response: ControlReplyBody


# -- broker to client: frames of the session (the log adds seq) ------------------------------------------------------


class SessionTotals(Struct, frozen=True, gc=False):
    """What a conversation has used since it began, over all of its processes."""

    turns: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_input_tokens: int = 0
    cache_creation_input_tokens: int = 0
    cost_usd: float = 0.0


class Message(_Reply, frozen=True, tag="broker.message"):
    """An accepted message, told to all clients."""

    id: str
    state: Literal["queued", "started"]
    by: str
    content: str | list[TextBlock | ImageNote | DocumentNote]


class TurnCompleted(_Reply, frozen=True, tag="broker.turn_completed"):
    """The turn's ``result`` arrived.  Times in milliseconds; ``usage`` and ``cost_usd`` are this turn's, ``total``
    the conversation's.  ``folded_into``: the CLI answered this message within the turn of that one."""

    id: str | None
    subtype: str
    is_error: bool
    error: UpstreamError | None
    stopped: bool
    ttft_ms: float | None
    queue_ms: float
    overhead_ms: float
    duration_ms: float
    frames: int
    usage: Any
    cost_usd: float | None
    total: SessionTotals
    origin: Literal["client", "cli"] = "client"
    folded_into: str | None = None


class TurnFailed(_Reply, frozen=True, tag="broker.turn_failed"):
    """The turn ended without its ``result``.  The broker never re-sends a message by itself."""

    id: str
    reason: FailureReason
    applied: Applied
    retryable: bool
    detail: str | None = None


class RequestResolved(_Reply, frozen=True, tag="broker.request_resolved"):
    """A CLI request is settled."""

    request_id: str
    outcome: Literal["allowed", "denied", "expired", "withdrawn"]
    by: str | None


class State(_Reply, frozen=True, tag="broker.state", omit_defaults=True):
    """What changed: the life of the session, or a successful control request.  ``mcp_servers`` and ``settings`` are
    names, ``credentials`` is the kind."""

    state: Literal["hibernated", "restored", "ended"] | UnsetType = UNSET
    reason: str | UnsetType = UNSET
    model: str | UnsetType | None = UNSET
    permission_mode: str | UnsetType = UNSET
    max_thinking_tokens: int | UnsetType | None = UNSET
    mcp_errors: dict[str, str] | UnsetType = UNSET
    mcp_servers: list[str] | UnsetType = UNSET
    credentials: str | UnsetType = UNSET
    settings: list[str] | UnsetType = UNSET
    total: SessionTotals | UnsetType = UNSET


class Debug(_Reply, frozen=True, tag="broker.debug"):
    """One line of the CLI's debug log, at most 8 KiB of it (``options.debug``)."""

    line: str


class Dropped(_Reply, frozen=True, tag="broker.dropped"):
    """Stands where a line of the CLI could not be forwarded."""

    bytes: int
    reason: DropReason


ServerFrame: TypeAlias = (
    Welcome | Accepted | Waiting | Error | Pong | GoAway | HistoryPage | ControlReply | Message | TurnCompleted
    | TurnFailed | RequestResolved | State | Debug | Dropped
)  # fmt: skip
