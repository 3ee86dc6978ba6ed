"""Lines of the CLI's debug log as ``broker.debug`` frames of a session, for clients that asked for them.

Synchronous.  Caller: the process's supervisor, through ``Lease.on_debug``, which ``broker.sessions.tenure`` sets.
"""

from msgspec import UNSET

from broker.sessions.session import Session
from protocol.frames import Debug
from protocol.options import Credentials

TOLD_BYTES = 8 * 1024
"""Of a longer line the rest is left out, after what is secret was taken away."""


def tell_debug(session: Session, lines: list[str]) -> None:
    """Publish ``lines`` where ``options.debug`` asks for frames."""
    bound = session.exchange.bound
    if bound.tells_debug:
        for line in lines:
            session.publish(Debug(without(line, bound.credentials).encode()[:TOLD_BYTES].decode(errors="ignore")))


def without(line: str, credentials: Credentials | None) -> str:
    """``line`` without the session's credential, which may be the server's: Claude Code was never seen to log one, but
    what it logs is its own affair."""
    if credentials is None:
        return line
    for secret in (credentials.oauth_token, credentials.api_key, credentials.auth_token):
        if secret is not UNSET:
            line = line.replace(secret, "[redacted]")
    return line
