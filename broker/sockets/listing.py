"""``GET /v1/sessions``: the conversations of whoever asks.

Caller: ``broker.sockets.http``.  The same tokens as for the socket, in ``Authorization``; nothing waits.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl

from broker.auth import Authenticator, Identity, Unauthorized, bearer_from_headers
from broker.metrics import Metrics
from broker.options import policy
from broker.sessions.entry import EPOCH_S, Asleep, Entry
from broker.sessions.registry import Registry
from protocol.codes import CloseCode

MAX_LISTED = 1000
ALLOWED_QUERY = "only ?subject= may be given, once"


class BadQuery(Exception):
    """The query asks for something else than a subject; the text is for whoever asked."""


class Listing:
    """Answers for one broker."""

    def __init__(self, auth: Authenticator, registry: Registry, metrics: Metrics) -> None:
        self._auth = auth
        self._registry = registry
        self._metrics = metrics

    def sessions(self, authorization: Sequence[str], query: str) -> dict[str, Any]:
        """The page: the latest first, at most ``MAX_LISTED``, ``has_more`` when there are others.

        A token's own subject is what it sees; one of ``*`` sees all of the tenant's, or with ``?subject=`` one's.
        Raises ``Unauthorized``, ``ConnectionRefused`` (another subject than the token's), ``BadQuery``.
        """
        try:
            identity = self._auth.authenticate(bearer_from_headers(authorization))
        except Unauthorized:
            self._metrics.protocol_error(CloseCode.UNAUTHORIZED.label)
            raise
        found = self._registry.of(identity.tenant, _subject(identity, query))
        found.sort(key=lambda entry: entry.last_active, reverse=True)
        shown = [_row(entry) for entry in found[:MAX_LISTED]]
        return {"data": shown, "has_more": len(found) > MAX_LISTED}


def _subject(identity: Identity, query: str) -> str | None:
    """Whose sessions are asked for; None: everybody's of the tenant."""
    try:
        given = parse_qsl(query, keep_blank_values=True, max_num_fields=1)
    except ValueError as error:
        raise BadQuery(ALLOWED_QUERY) from error
    if any(name != "subject" for name, _ in given):
        raise BadQuery(ALLOWED_QUERY)
    named = given[0][1] if given else None
    return None if named is None and identity.subject == "*" else policy.subject(identity.subject, named)


def _row(entry: Entry | Asleep) -> dict[str, Any]:
    _, subject, session_id = entry.key
    return {
        "id": session_id,
        "subject": subject,
        "state": entry.state,
        "last_activity": _moment(entry.last_active + EPOCH_S),
        "created": _moment(entry.created_at),
    }


def _moment(seconds: float) -> str:
    """RFC 3339, in UTC, to the millisecond."""
    return datetime.fromtimestamp(round(seconds, 3), UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
