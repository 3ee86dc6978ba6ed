"""What turns cost: a turn's share of the CLI's running total, and the conversation's own sum.

Pure.  Owner: one ``broker.turns.turns.Turns``.  The CLI's ``total_cost_usd`` runs on from turn to turn, its ``usage``
is the turn's own.  A process that goes on with a conversation begins its total where the one before ended in order, or
at zero: nobody says which.  2.1.329 tells what each turn has cost (``model_usage_since_last_result``); 2.1.197 does
not, and always begins at zero.
"""

import math

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from protocol.cli import Result
from protocol.controls import DECODE_ERRORS
from protocol.frames import SessionTotals


class _Tokens(Struct, frozen=True):
    """Null where the CLI has no count."""

    input_tokens: int | None = 0
    output_tokens: int | None = 0
    cache_read_input_tokens: int | None = 0
    cache_creation_input_tokens: int | None = 0


class _Spent(Struct, frozen=True):
    costUSD: float | None = 0.0


_tokens = msgspec.json.Decoder(_Tokens)
_spent = msgspec.json.Decoder(dict[str, _Spent])


class Usage:
    """The sums of one conversation, over all of its processes.  ``total`` is what it has used so far."""

    def __init__(self, total: SessionTotals | None = None) -> None:
        self.total = total or SessionTotals()
        self._cli_total_usd = 0.0

    def process_changed(self) -> None:
        """The next ``result`` comes from another process, whose total may begin at zero."""
        self._cli_total_usd = 0.0

    def add(self, result: Result) -> float | None:
        """Count a turn that has ended; returns its cost in dollars, None when the CLI did not tell it."""
        cost = self._cost(result)
        found, old = _decoded(result.usage), self.total
        self.total = SessionTotals(
            old.turns + 1,
            old.input_tokens + (found.input_tokens or 0),
            old.output_tokens + (found.output_tokens or 0),
            old.cache_read_input_tokens + (found.cache_read_input_tokens or 0),
            old.cache_creation_input_tokens + (found.cache_creation_input_tokens or 0),
            round(old.cost_usd + (cost or 0.0), 9),
        )
        return cost

    def _cost(self, result: Result) -> float | None:
        total, before = result.total_cost_usd, self._cli_total_usd
        if total is not None:
            self._cli_total_usd = total
        told = _cost_since_last(result.model_usage_since_last_result)
        if told is not None:
            return told
        if total is None:
            return None
        return round(total - before if total >= before else total, 9)


def _cost_since_last(usage: Raw | UnsetType) -> float | None:
    """The turn's cost by model, as newer CLIs tell it."""
    if usage is UNSET:
        return None
    try:
        return round(math.fsum(spent.costUSD or 0.0 for spent in _spent.decode(usage).values()), 9)
    except DECODE_ERRORS:
        return None


def _decoded(usage: Raw | UnsetType) -> _Tokens:
    try:
        return _Tokens() if usage is UNSET else _tokens.decode(usage)
    except DECODE_ERRORS:
        return _Tokens()
