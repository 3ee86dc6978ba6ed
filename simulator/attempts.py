"""Which model answers a request: retries of a refused one, and the fallbacks behind it.

As with the real program, an overloaded model (529) is asked three times before the next one is, if so many retries are
allowed; a failing (5xx) or unknown one (404) gives way at once; a rate limit (429) is waited for and never evaded.
``CLAUDE_CODE_MAX_RETRIES`` counts.  Without it the real program retries ten times, for minutes; here it is twice where
there is a fallback and never where there is none, and every wait is a tenth of the real one.
Caller: ``simulator.conversation``.
"""

import os
from typing import TYPE_CHECKING, Final

from simulator import directives, models, refusals
from simulator.directives import Directives
from simulator.messages import Message
from simulator.refusals import Refusal

if TYPE_CHECKING:
    from simulator.turn import Turn

FIRST_DELAY_MS: Final = 50
MAX_DELAY_MS: Final = 3200
OVERLOADED: Final = 529
RETRIES_OF_OVERLOAD: Final = 2
"""Retries of an overloaded model that has one behind it."""
_RETRIED: Final = {429: "rate_limit", OVERLOADED: "overloaded"}


def find_model(turn: "Turn", wanted: Directives, problem: str | None) -> str | Refusal:
    """The full name of the model that answers, or how the request ends.

    ``wanted`` is what the user's text asks for, ``problem`` why it cannot be read.  Tells retries and fallbacks; raises
    what ``Turn.pause`` raises.
    """
    first = turn.session.settings.model
    chain = list(dict.fromkeys([first, *(models.resolve(name) for name in turn.session.flags.fallbacks)]))
    for model, following in zip(chain, [*chain[1:], None], strict=True):
        found = refusals.find(turn.session.settings, directives.for_model(wanted, model), problem, model)
        if found is None:
            return model
        if not _gives_way(turn, found.status, following is not None) or following is None:
            return found
        turn.session.system("model_fallback", **_fallback(found.status, model, following))
    raise AssertionError("a chain of models has an end")


def _gives_way(turn: "Turn", status: int | None, has_following: bool) -> bool:
    """Retry a refused request; True if the next model is to be asked then."""
    allowed = _max_retries(2 if turn.session.flags.fallbacks else 0)
    fails = status is not None and status >= 500
    if has_following and (status == 404 or (fails and status != OVERLOADED)):
        return True
    is_overloaded = has_following and status == OVERLOADED
    count = min(allowed, RETRIES_OF_OVERLOAD) if is_overloaded else allowed if fails or status == 429 else 0
    for attempt in range(1, count + 1):
        delay = min(FIRST_DELAY_MS << (attempt - 1), MAX_DELAY_MS)
        kind = _RETRIED.get(status or 0, "server_error")
        retry = {"attempt": attempt, "max_retries": allowed, "retry_delay_ms": delay}
        turn.session.system("api_retry", **retry, error_status=status, error=kind)
        turn.pause(delay / 1000)
    return is_overloaded and count == RETRIES_OF_OVERLOAD


def _fallback(status: int | None, model: str, following: str) -> Message:
    old, new = models.title(model), models.title(following)
    trigger = {404: "model_not_found", OVERLOADED: "overloaded"}.get(status or 0, "server_error")
    why = f"because {old} is not available" if status == 404 else f"due to high demand for {old}"
    fields = {"trigger": trigger, "original_model": model, "fallback_model": following}
    return {**fields, "content": f"Switched to {new} {why}"}


def _max_retries(usual: int) -> int:
    text = os.environ.get("CLAUDE_CODE_MAX_RETRIES", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 5 else usual
