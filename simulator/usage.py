"""What turns cost: tokens and play money, per turn and for the whole life of the process.

Pure.  ``usage`` is the turn's own.  ``total_cost_usd`` and ``modelUsage`` are cumulative: they start from what an
earlier process of the conversation left when it ended in order (``state``), as the real program's do.
Callers: ``simulator.session``, ``simulator.messages``.
"""

from typing import Any, Final

from simulator import models

_ROW: Final = {
    "inputTokens": 0,
    "outputTokens": 0,
    "cacheReadInputTokens": 0,
    "cacheCreationInputTokens": 0,
    "webSearchRequests": 0,
    "costUSD": 0.0,
    "contextWindow": 1_000_000,
    "maxOutputTokens": 128_000,
    "thinkingTokens": 0,
    "cacheCreationEphemeral5mInputTokens": 0,
    "cacheCreationEphemeral1hInputTokens": 0,
    "canonicalModel": "",
    "provider": "firstParty",
    "costBasis": "list",
}


class Usage:
    """Running totals, from those of an earlier process on.  ``begin_turn`` starts the next turn's own count."""

    def __init__(self, earlier: dict[str, Any] | None = None) -> None:
        found = earlier or {}
        self.total_cost_usd = _number(found.get("totalCostUSD"))
        self._began_with = self.total_cost_usd
        rows = found.get("modelUsage")
        self._models: dict[str, dict[str, Any]] = {
            name: {**_ROW, "canonicalModel": name, **row}
            for name, row in (rows.items() if isinstance(rows, dict) else ())
            if isinstance(row, dict)
        }
        self._since: dict[str, dict[str, Any]] = {}
        self._input = 0
        self._output = 0

    @property
    def spent_usd(self) -> float:
        """What this process alone has cost."""
        return self.total_cost_usd - self._began_with

    def state(self) -> dict[str, Any]:
        """What the next process of the conversation starts from; empty if nothing was counted."""
        if not self._models:
            return {}
        return {"totalCostUSD": self.total_cost_usd, "modelUsage": self.by_model(), "hasUnknownModelCost": False}

    def begin_turn(self) -> None:
        self._input = self._output = 0

    def add(self, model: str, input_tokens: int, output_tokens: int, *, beside: bool = False) -> None:
        """Count one request to the API; one ``beside`` the turn's own (a subagent's) is no part of ``usage``."""
        price = models.find(model)
        cost = input_tokens * price.input_usd + output_tokens * price.output_usd
        self.total_cost_usd += cost
        self._input += 0 if beside else input_tokens
        self._output += 0 if beside else output_tokens
        for table in (self._models, self._since):
            row = table.setdefault(model, {**_ROW, "canonicalModel": model})
            row["inputTokens"] += input_tokens
            row["outputTokens"] += output_tokens
            row["costUSD"] += cost

    def of_turn(self, *, counted: bool = True) -> dict[str, Any]:
        """``usage`` of a ``result``; an interrupted stream counts nothing there."""
        return turn_usage(self._input if counted else 0, self._output if counted else 0)

    def by_model(self) -> dict[str, Any]:
        """``modelUsage``: everything so far."""
        return {name: dict(row) for name, row in self._models.items()}

    def since_last(self) -> dict[str, Any]:
        """``model_usage_since_last_result``; the next call starts anew."""
        rows, self._since = self._since, {}
        return rows


def turn_usage(input_tokens: int, output_tokens: int) -> dict[str, Any]:
    """The ``usage`` object of a ``result``."""
    return {
        "input_tokens": input_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": output_tokens,
        "output_tokens_details": {"thinking_tokens": 0},
        "server_tool_use": {"web_search_requests": 0, "web_fetch_requests": 0},
        "service_tier": "standard",
        "cache_creation": {"ephemeral_1h_input_tokens": 0, "ephemeral_5m_input_tokens": 0},
        "inference_geo": "",
        "iterations": [],
        "speed": "standard",
        "fallback_credit": None,
    }


def request_usage(input_tokens: int, output_tokens: int) -> dict[str, Any]:
    """The ``usage`` object of one API message."""
    return {
        "input_tokens": input_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": output_tokens,
        "service_tier": "standard",
    }


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else 0.0
