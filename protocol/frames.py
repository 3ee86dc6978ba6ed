"""Every frame of ``broker.v1`` as a struct: what a client may send and what the broker itself says.

The CLI's own output is not here: it passes through untouched but for its ``seq`` (see ``protocol.codec``).
Broker-shaped frames refuse unknown fields; SDK-shaped ones (``user``, ``control_request``, ``control_response``,
``keep_alive``) drop them.  Over 300 lines because it is one list: the whole vocabulary, in one place to look it up.
"""

from typing import Annotated, Any, Literal, TypeAlias

from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from protocol.codes import Applied, DropReason, ErrorCode, FailureReason, LostReason, MissReason, Start, UpstreamError
from protocol.options import SessionOptions

PROTOCOL_VERSION = 1
SUBPROTOCOL = "broker.v1"
TRACEPARENT = r"^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$(?!\n)"
SESSION_ID = r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$(?!\n)"

MessageId = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[\x21-\x7e]+$(?!\n)")]
"""A message's idempotency key: at most 64 bytes of visible ASCII."""
RequestId = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[\x21-\x7e]+$(?!\n)")]
ShortText = Annotated[str, Meta(max_length=128, pattern=r"^[^\x00-\x1f\x7f]*$(?!\n)")]
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


class Base64Source(Struct, frozen=True, tag_field="type", tag="base64"):
    """Bytes of an image or a document, given inline."""

    media_type: ShortText
    data: str


class TextBlock(Struct, frozen=True, tag_field="type", tag="text"):
    """Words."""

    text: str


class ImageBlock(Struct, frozen=True, tag_field="type", tag="image"):
    """A picture."""

    source: Base64Source


class DocumentBlock(Struct, frozen=True, tag_field="type", tag="document"):
    """A PDF."""

    source: Base64Source
    title: str | UnsetType = UNSET


ContentBlock: TypeAlias = TextBlock | ImageBlock | DocumentBlock
Content: TypeAlias = str | Annotated[list[ContentBlock], Meta(min_length=1, max_length=256)]


class UserBody(Struct, frozen=True):
    """``message`` of an SDK-shaped user frame."""

    content: Content
    role: Literal["user"] = "user"


class User(_Lenient, frozen=True, tag="user"):
    """A user message in the SDK's shape; ``uuid`` is its idempotency key."""

    message: UserBody
    uuid: MessageId | UnsetType = UNSET


class UserMessage(_Strict, frozen=True, tag="user_message"):
    """The same, short form."""

    content: Content
    id: MessageId | UnsetType = UNSET


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


ClientFrame: TypeAlias = Hello | User | UserMessage | ControlRequest | ControlResponse | KeepAlive | Cancel | Ping | End

UNSUPPORTED_FRAMES = frozenset({"broker.history", "broker.delete"})

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
    """The turn that runs at ``head_seq``."""

    id: str
    state: str
    first_seq: int


class Limits(Struct, frozen=True):
    """The bounds that concern a client; bytes, counts and seconds."""

    max_message_bytes: int
    max_frame_bytes: int
    queue: int
    replay_frames: int
    replay_bytes: int
    replay_seconds: float


class Welcome(_Reply, frozen=True, tag="broker.welcome"):
    """The process is bound (or the session was live): talk."""

    session_id: str
    epoch: str
    head_seq: int
    resumed: bool
    replay: Replay | None
    lost: Lost | None
    start: Start | None
    miss_reason: MissReason | None
    ready_ms: float
    role: Role
    view: View
    cli: CliInfo
    options_ignored: list[str]
    turn: TurnInfo | None
    queued: list[str]
    pending: list[Raw]
    limits: Limits
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


class ImageNote(Struct, frozen=True, tag_field="type", tag="image"):
    """Stands for a picture in ``broker.message``; ``bytes`` are those behind the base64."""

    media_type: str
    bytes: int


class DocumentNote(Struct, frozen=True, tag_field="type", tag="document"):
    """Stands for a document in ``broker.message``; ``bytes`` are those behind the base64."""

    media_type: str
    bytes: int


class Message(_Reply, frozen=True, tag="broker.message"):
    """An accepted message, told to all clients."""

    id: str
    state: Literal["queued", "started"]
    by: str
    content: str | list[TextBlock | ImageNote | DocumentNote]


class TurnCompleted(_Reply, frozen=True, tag="broker.turn_completed"):
    """The turn's ``result`` arrived.  Times in milliseconds; ``usage`` and ``cost_usd`` are this turn's."""

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
    origin: Literal["client", "cli"] = "client"


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
    """What changed: the life of the session, or a successful control request."""

    state: Literal["hibernated", "restored", "ended"] | UnsetType = UNSET
    reason: str | UnsetType = UNSET
    model: str | UnsetType | None = UNSET
    permission_mode: str | UnsetType = UNSET
    max_thinking_tokens: int | UnsetType | None = UNSET
    mcp_errors: dict[str, str] | UnsetType = UNSET


class Dropped(_Reply, frozen=True, tag="broker.dropped"):
    """Stands where a line of the CLI could not be forwarded."""

    bytes: int
    reason: DropReason


ServerFrame: TypeAlias = (
    Welcome | Accepted | Waiting | Error | Pong | GoAway | ControlReply | Message | TurnCompleted | TurnFailed
    | RequestResolved | State | Dropped
)  # fmt: skip
