"""When the API refuses a request, and what the CLI makes of it.

Pure.  Callers: ``simulator.attempts``, ``simulator.conversation``.
"""

from typing import Final, NamedTuple

from simulator import models
from simulator.directives import Directives
from simulator.settings import Settings


class Refusal(NamedTuple):
    """An error in the CLI's words.  ``status`` is None when no answer of the API was seen."""

    status: int | None
    text: str
    kind: str
    """``error`` of the synthetic assistant message."""
    error_type: str | None = None


LOST: Final = Refusal(
    None,
    "API Error: Connection to the API was lost (ECONNRESET). This is usually temporary — try again.",
    "server_error",
)
_NOT_LOGGED_IN: Final = Refusal(None, "Not logged in · Please run /login", "authentication_failed")
# By HTTP status: the CLI's word, the API's own word, and the API's text.
_KINDS: Final = {
    401: ("authentication_failed", "authentication_error", "invalid bearer token"),
    403: ("unknown", "permission_error", "simulated error 403"),
    404: ("model_not_found", "not_found_error", "simulated error 404"),
    429: ("rate_limit", "rate_limit_error", "Number of requests has exceeded your rate limit"),
    529: ("server_error", "overloaded_error", "Overloaded"),
}


def find(settings: Settings, wanted: Directives, problem: str | None, model: str) -> Refusal | None:
    """The refusal of a request for ``model``, or None.  ``problem`` is a directive that could not be read."""
    credential = settings.credential()
    if credential is None:
        return _NOT_LOGGED_IN
    if credential.is_bad:
        return of_status(401)
    if not models.is_known(model):
        hint = "It may not exist or you may not have access to it. Run --model to pick a different model."
        return of_status(404, f"There's an issue with the selected model ({model}). {hint}")
    if problem is not None:
        return of_status(400, f"API Error: 400 {problem}")
    return None if wanted.error is None else of_status(wanted.error)


def of_status(status: int, text: str | None = None) -> Refusal:
    """The refusal that an HTTP status becomes; ``text`` replaces the usual words."""
    plain = ("server_error", "api_error") if status >= 500 else ("unknown", "invalid_request_error")
    kind, error_type, said = _KINDS.get(status, (*plain, f"simulated error {status}"))
    head = "Failed to authenticate. " if status == 401 else ""
    return Refusal(status, text or f"{head}API Error: {status} {said}", kind, error_type)
