"""Log lines: structlog, console on a terminal and JSON otherwise, with nothing secret in them.

Owner: ``broker.__main__`` calls ``configure`` once, before anything else; every module logs through
``structlog.get_logger(__name__)``.  The standard library's loggers (websockets, asyncio) are routed through the same
chain.  Redaction is by key, at any depth; every text is bounded and free of control characters, so a line is a line.
An exception is told as type, message and places; never with source lines or local variables.
"""

import logging
import re
import sys
import traceback
from collections.abc import Mapping, MutableMapping
from typing import Any, BinaryIO

import msgspec
import structlog

REDACTED = "[redacted]"
SECRET_KEYS = frozenset(
    {
        "token", "oauth_token", "api_key", "auth_token", "authorization", "secret", "password", "prompt", "content",
        "system_prompt", "text", "headers", "env",
    }
)  # fmt: skip
MAX_CHARS = 256
MAX_ITEMS = 32
MAX_DEPTH = 4
MAX_PLACES = 40
MAX_CAUSES = 5
FOREIGN_FLOOR = logging.WARNING
"""websockets logs headers and payloads at DEBUG: its lines are taken from here up, whatever our own level."""

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
Event = MutableMapping[str, Any]


def configure(level: str = "info", *, stream: BinaryIO | None = None, json: bool | None = None) -> None:
    """Set up logging for the process; calling again replaces the earlier set-up.

    ``level``: debug, info, warning or error.  ``stream``: bytes, stderr by default.  ``json``: None means JSON unless
    the stream is a terminal.  Raises ``ValueError`` for another level.
    """
    if level not in _LEVELS:
        raise ValueError(f"level must be one of {', '.join(_LEVELS)}")
    sink = _Sink(sys.stderr.buffer if stream is None else stream)
    as_json = not sink.is_terminal if json is None else json
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            tell_exception,
            redact,
            _to_json if as_json else _Console(sink.is_terminal),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=lambda *args: sink,
        # Not cached: a module's logger follows a later configure().  Costs about 3 us per line; none is per frame.
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, _Bridge)]:
        root.removeHandler(handler)
    root.addHandler(_Bridge(max(_LEVELS[level], FOREIGN_FLOOR)))


class _Sink:
    """Writes whole lines.  A reader of our log that went away must not end a session: then lines are lost."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        try:
            self.is_terminal = stream.isatty()
        except ValueError:  # already closed
            self.is_terminal = False

    def msg(self, line: bytes) -> None:
        try:
            self._stream.write(line + b"\n")
            self._stream.flush()
        except (OSError, ValueError):
            return

    debug = info = warning = error = critical = log = msg


class _Bridge(logging.Handler):
    """Routes a record of the standard library's logging into structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except (TypeError, ValueError, KeyError):  # arguments that do not fit the format
            message = str(record.msg)
        logger = structlog.get_logger(record.name)
        logger.log(min(record.levelno, logging.CRITICAL), message, logger=record.name, exc_info=record.exc_info)


# -- processors ------------------------------------------------------------------------------------------------------


def tell_exception(_logger: object, _method: str, event: Event) -> Event:
    """Replace ``exc_info`` by ``exception``: a list of type, message and places for it and its causes."""
    found = event.pop("exc_info", None)
    error = found[1] if isinstance(found, tuple) else sys.exc_info()[1] if found is True else found
    if isinstance(error, BaseException):
        event["exception"] = _told(error)
    return event


def _told(error: BaseException) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = []
    queue: list[BaseException | None] = [error]
    while queue and len(told) < MAX_CAUSES:
        one = queue.pop(0)
        if one is None:
            continue
        frames = traceback.extract_tb(one.__traceback__, limit=-MAX_PLACES)
        told.append(
            {
                "type": type(one).__qualname__,
                "message": _clean(str(one)),
                "places": [f"{_short(frame.filename)}:{frame.lineno} {frame.name}" for frame in frames],
            }
        )
        if isinstance(one, BaseExceptionGroup):
            queue.extend(one.exceptions)
        queue.append(one.__cause__ if one.__cause__ is not None or one.__suppress_context__ else one.__context__)
    return told


def _short(filename: str) -> str:
    return "/".join(filename.rsplit("/", 2)[-2:])


def redact(_logger: object, _method: str, event: Event) -> Event:
    """Hide values by key, clean and bound every text.  The names ``event``, ``level``, ``timestamp`` stay first."""
    exception = event.pop("exception", None)
    # Taken out first: a line with too many fields loses the last of them, never its own name.
    first: dict[str, Any] = {key: event.pop(key) for key in ("timestamp", "level", "event") if key in event}
    safe = _safe_items(first, 0) | _safe_items(event, 0)
    return safe if exception is None else safe | {"exception": exception}


def _safe_items(items: Mapping[Any, Any], depth: int) -> dict[str, Any]:
    return {
        _clean(str(key)): REDACTED if _is_secret(key) else _safe(value, depth)
        for key, value in list(items.items())[:MAX_ITEMS]
    }


def _is_secret(key: object) -> bool:
    return str(key).lower().replace("-", "_") in SECRET_KEYS


def _safe(value: object, depth: int) -> Any:
    match value:
        case None | bool() | float():
            return value
        case int():
            return int(value) if value.bit_length() <= 64 else "[huge number]"
        case str():
            return _clean(str(value))
        case bytes() | bytearray() | memoryview():
            return f"[{len(value)} bytes]"
        case Mapping() | list() | tuple() | set() | frozenset() if depth >= MAX_DEPTH:
            return "[deep]"
        case Mapping():
            return _safe_items(value, depth + 1)
        case list() | tuple() | set() | frozenset():
            return [_safe(item, depth + 1) for item in list(value)[:MAX_ITEMS]]
        case _:  # never handed to the encoder: that would write out every field of a struct
            return _clean(repr(value))


def _clean(text: str) -> str:
    cut = text[:MAX_CHARS] + "…" if len(text) > MAX_CHARS else text
    return _CONTROL.sub(" ", cut)


# -- renderers -------------------------------------------------------------------------------------------------------


def _to_json(_logger: object, _method: str, event: Event) -> bytes:
    return msgspec.json.encode(event)


class _Console:
    """``structlog.dev.ConsoleRenderer`` as bytes, with the exception below the line."""

    def __init__(self, colors: bool) -> None:
        self._render = structlog.dev.ConsoleRenderer(colors=colors)

    def __call__(self, logger: object, method: str, event: Event) -> bytes:
        told = event.pop("exception", [])
        lines = [self._render(logger, method, event)]
        for one in told:
            lines.append(f"  {one['type']}: {one['message']}")
            lines += [f"    {place}" for place in one["places"]]
        return "\n".join(lines).encode()
