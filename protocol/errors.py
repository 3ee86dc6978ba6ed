"""Errors whose fault lies with the client, carrying the code that goes on the wire."""

from protocol.codes import CloseCode, ErrorCode


class ClientError(Exception):
    """The client broke the protocol, its policy, or asked for what is not there.

    ``close`` is set when the connection cannot go on.  ``ref`` names the frame meant (message id or request id).
    ``retry_after_ms``: from when on the same frame may succeed.
    ``message`` never contains a value that the client sent as a secret.
    """

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        *,
        close: CloseCode | None = None,
        ref: str | None = None,
        retry_after_ms: int | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.close = close
        self.ref = ref
        self.retry_after_ms = retry_after_ms


class ConnectionRefused(Exception):
    """The connection ends with ``close`` and no ``broker.error`` before it: the close code says it all."""

    def __init__(self, close: CloseCode, reason: str | None = None) -> None:
        super().__init__(reason or close.label)
        self.close = close
        self.reason = reason or close.label
