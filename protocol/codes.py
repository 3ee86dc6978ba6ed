"""The closed alphabet of everything that can go wrong or be told.

The same name is wire value, log field and metric label.  Every member is raised somewhere in this tree; a change that
needs a new one adds it here.  Pure: no I/O, no clock.
"""

from enum import IntEnum, StrEnum

RETRYABLE_CLOSE_CODES = range(4000, 4500)
"""A client may reconnect after one of these; 4500-4999 is final."""


class CloseCode(IntEnum):
    """WebSocket close codes that the broker sends (RFC 6455 section 7.4)."""

    ENDED = 1000
    BAD_UTF8 = 1007
    DRAINING = 1012
    SLOW_CONSUMER = 4001
    RATE_LIMITED = 4003
    POOL_UNAVAILABLE = 4004
    QUEUE_TIMEOUT = 4005
    HELLO_TIMEOUT = 4007
    INTERNAL = 4013
    BAD_FRAME = 4500
    UNAUTHORIZED = 4501
    HELLO_EXPECTED = 4502
    NOT_ALLOWED = 4503
    UNKNOWN_SESSION = 4504
    SESSION_EXISTS = 4505
    BIND_FAILED = 4506
    SESSION_DELETED = 4507
    REVOKED = 4508
    REPLACED = 4509
    PROTOCOL_VERSION = 4510

    @property
    def label(self) -> str:
        """The name in logs, metrics and close reasons: ``slow_consumer``."""
        return self.name.lower()


class ErrorCode(StrEnum):
    """``code`` of a ``broker.error`` frame."""

    BAD_FRAME = "bad_frame"
    BAD_OPTIONS = "bad_options"
    OPTION_NOT_ALLOWED = "option_not_allowed"
    BIND_FAILED = "bind_failed"
    CONTROL_NOT_ALLOWED = "control_not_allowed"
    ID_CONFLICT = "id_conflict"
    QUEUE_FULL = "queue_full"
    ALREADY_STARTED = "already_started"
    ALREADY_ANSWERED = "already_answered"
    UNKNOWN_REQUEST = "unknown_request"
    UNKNOWN_MESSAGE = "unknown_message"
    NOT_CONTROLLER = "not_controller"
    CREDENTIALS_REQUIRED = "credentials_required"
    INITIALIZE_REQUIRED = "initialize_required"
    POOL_UNAVAILABLE = "pool_unavailable"
    RATE_LIMITED = "rate_limited"
    QUOTA_EXCEEDED = "quota_exceeded"
    DRAINING = "draining"
    STORAGE_FAILED = "storage_failed"
    INTERNAL = "internal"


RETRYABLE_ERRORS = frozenset(
    {
        ErrorCode.QUEUE_FULL,
        ErrorCode.POOL_UNAVAILABLE,
        ErrorCode.RATE_LIMITED,
        ErrorCode.QUOTA_EXCEEDED,
        ErrorCode.DRAINING,
        ErrorCode.STORAGE_FAILED,
    }
)
"""The same request may succeed later, unchanged."""


class Limit(StrEnum):
    """``limit`` of ``broker_limits_refused_total``: a key of ``[limits]`` or ``[server]``, or the system's."""

    MESSAGES_PER_SECOND = "messages_per_second"
    REFUSED_MESSAGES = "refused_messages"
    TENANT_MESSAGES_PER_SECOND = "tenant_messages_per_second"
    TENANT_CONNECTIONS = "tenant_connections"
    TENANT_SESSIONS = "tenant_sessions"
    TENANT_DISK_MB = "tenant_disk_mb"
    TENANT_PROCESSES = "tenant_processes"
    TENANT_WAITING = "tenant_waiting"
    TENANT_COLD_STARTS_PER_MINUTE = "tenant_cold_starts_per_minute"
    MAX_INBOUND_BYTES = "max_inbound_bytes"
    MAX_UNAUTHENTICATED = "max_unauthenticated"
    MAX_UNAUTHENTICATED_PER_IP = "max_unauthenticated_per_ip"
    SEND_DEADLINE_S = "send_deadline_s"
    DESCRIPTORS = "descriptors"


class FailureReason(StrEnum):
    """``reason`` of ``broker.turn_failed``: the turn's ``result`` never came."""

    CLI_EXITED = "cli_exited"
    CLI_KILLED_MEMORY = "cli_killed_memory"
    CLI_PROTOCOL = "cli_protocol"
    FIRST_TOKEN_TIMEOUT = "first_token_timeout"  # noqa: S105 - a token of text
    IDLE_TIMEOUT = "idle_timeout"
    TURN_TIMEOUT = "turn_timeout"
    INTERRUPTED = "interrupted"
    CANCELLED = "cancelled"
    CREDENTIAL_MISMATCH = "credential_mismatch"
    DRAINING = "draining"
    BROKER_RESTARTED = "broker_restarted"
    INTERNAL = "internal"


class UpstreamError(StrEnum):
    """``error`` of ``broker.turn_completed`` with ``is_error``: the ``result`` came and told of a failure."""

    OVERLOADED = "upstream_overloaded"
    RATE_LIMITED = "upstream_rate_limited"
    AUTH = "upstream_auth"
    ERROR = "upstream_error"
    MAX_TURNS = "max_turns"
    MAX_BUDGET = "max_budget"


class Applied(StrEnum):
    """Whether a failed message may have had effects: never written, unknown, or a frame of its turn was seen."""

    NO = "no"
    UNKNOWN = "unknown"
    YES = "yes"


class Start(StrEnum):
    """``welcome.start``: where the process came from."""

    WARM = "warm"
    COLD = "cold"
    RESTORED = "restored"
    ATTACHED = "attached"


class MissReason(StrEnum):
    """``welcome.miss_reason``: why a start was cold."""

    POOL_EMPTY = "pool_empty"
    NO_PROFILE = "no_profile"
    POOL_DISABLED = "pool_disabled"


class LostReason(StrEnum):
    """``welcome.lost.reason``: why frames that a client asked for are not replayed."""

    EXPIRED = "expired"
    TOO_FAR_BEHIND = "too_far_behind"
    FUTURE_SEQ = "future_seq"
    EPOCH_CHANGED = "epoch_changed"


class LastClose(StrEnum):
    """``welcome.last_close``: why the broker ended the client's last connection; its close frame may be stuck."""

    SLOW_CONSUMER = "slow_consumer"
    PING_FLOOD = "ping_flood"
    RATE_LIMITED = "rate_limited"


class DropReason(StrEnum):
    """``broker.dropped.reason``: why a line of the CLI was not forwarded."""

    TOO_LARGE = "too_large"
    BAD_UTF8 = "bad_utf8"
    NOT_JSON = "not_json"
    NOT_AN_OBJECT = "not_an_object"
