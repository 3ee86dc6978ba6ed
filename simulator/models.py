"""The models that exist here, their aliases and prices.

Pure tables.  Names and prices are those that the real program showed; what is charged is play money.
Callers: ``simulator.settings``, ``simulator.usage``, ``simulator.messages``.
"""

from typing import Any, Final, NamedTuple


class Model(NamedTuple):
    """A model's full name, the name people know, and its price in dollars per token."""

    name: str
    title: str
    input_usd: float
    output_usd: float


SONNET: Final = Model("claude-sonnet-5-5", "Sonnet 5.5", 2e-6, 1e-5)
ALIASES: Final = {
    "default": SONNET,
    "sonnet": SONNET,
    "opus": Model("claude-opus-5-5", "Opus 5.5", 4e-6, 2e-5),
    "haiku": Model("claude-haiku-5-5", "Haiku 5.5", 1e-7, 5e-7),
    "fable": Model("claude-fable-5-2", "Fable 5.2", 1e-5, 5e-5),
}
_BY_NAME: Final = {model.name: model for model in ALIASES.values()}


def resolve(name: str | None) -> str:
    """The full name for an alias; any other name is its own."""
    alias = ALIASES.get(name or "default")
    return alias.name if alias else str(name)


def is_known(name: str) -> bool:
    """Whether the API would serve a model of this full name: ``claude-*``, unless ``unknown`` is in it."""
    return name.startswith("claude-") and "unknown" not in name


def find(name: str) -> Model:
    """The model of a full name; one that has no row here costs what the default costs."""
    return _BY_NAME.get(name) or SONNET._replace(name=name, title=name)


def title(name: str) -> str:
    """What people call the model of a full name."""
    known = _BY_NAME.get(name)
    return known.title if known else name


def listing() -> list[dict[str, Any]]:
    """``models`` of the ``initialize`` answer."""
    return [
        {
            "value": alias,
            "resolvedModel": model.name,
            "displayName": "Default (recommended)" if alias == "default" else alias.capitalize(),
            "description": f"{model.title} · Simulated",
            "supportsEffort": True,
            "supportedEffortLevels": ["low", "medium", "high", "xhigh", "max"],
            "supportsAdaptiveThinking": True,
            "supportsAutoMode": True,
            "supportsThinkingOff": False,
        }
        for alias, model in ALIASES.items()
    ]
