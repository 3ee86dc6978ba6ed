"""Errors whose fault is not the client's: ours, the operator's, or the child's.

Whose fault it is stands in the type: ``protocol.errors.ClientError`` for the client, ``ConfigError`` and ``CliMissing``
for the operator, ``ProcessError`` for a child process, ``BrokerError`` for the broker itself.  Every module may raise
these; the session task, the connection handler and ``broker.__main__`` stop them.
"""

from typing import ClassVar

from protocol.codes import CloseCode, ErrorCode, FailureReason

EXIT_OK = 0
EXIT_FAILURE = 1
EXIT_NO_CLI = 69
"""``EX_UNAVAILABLE`` of sysexits.h."""
EXIT_CONFIG = 78
"""``EX_CONFIG`` of sysexits.h."""


class BrokerError(Exception):
    """The broker failed, or is full.

    ``code`` goes on the wire as ``broker.error``.  ``close`` is set when the connection cannot go on.
    ``retry_after_ms`` is what a client may be told; None: no estimate.
    """

    def __init__(
        self, code: ErrorCode, message: str, *, close: CloseCode | None = None, retry_after_ms: int | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.close = close
        self.retry_after_ms = retry_after_ms

    @classmethod
    def unavailable(cls, message: str, retry_after_s: float) -> "BrokerError":
        """There is no process to be had; ``retry_after_s`` is a hint."""
        retry_after_ms = max(100, round(retry_after_s * 1000))
        unavailable = ErrorCode.POOL_UNAVAILABLE, message
        return cls(*unavailable, close=CloseCode.POOL_UNAVAILABLE, retry_after_ms=retry_after_ms)


class ProcessError(Exception):
    """A child process failed: it could not start, exited, broke its protocol, or missed a deadline.

    ``detail`` is short and safe to show to the tenant (``signal 9``, ``exit 1``); never a line that the child wrote.
    """

    def __init__(self, reason: FailureReason, detail: str) -> None:
        super().__init__(f"{reason.value}: {detail}")
        self.reason = reason
        self.detail = detail


class ResumeRefused(ProcessError):
    """The CLI ended by itself when it was asked to resume a conversation: its transcript cannot be read."""


class SpareLost(ProcessError):
    """A process that no conversation had used died while it was bound, or answered nothing: another one may do.

    ``pool``: what it is counted under.
    """

    def __init__(self, detail: str, pool: str) -> None:
        super().__init__(FailureReason.CLI_EXITED, detail)
        self.pool = pool


class ConfigError(Exception):
    """The operator's mistake: the broker does not start, opens no port and exits 78.

    ``path`` is the dotted key (``pool.max_processes``) or the file; ``message`` says what was found, never a secret's
    value; ``allowed`` says what would be accepted, or is empty.
    """

    exit_code: ClassVar[int] = EXIT_CONFIG

    def __init__(self, path: str, message: str, allowed: str = "") -> None:
        super().__init__(f"{path}: {message}" + (f" (allowed: {allowed})" if allowed else ""))
        self.path = path
        self.message = message
        self.allowed = allowed


class CliMissing(Exception):
    """No CLI can be found or started here: exit 69.  The text says what was looked for and what to do."""

    exit_code: ClassVar[int] = EXIT_NO_CLI
