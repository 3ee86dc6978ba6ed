"""The directive language that both simulators read in a user's text, and the reply text that follows from it.

``hello [[sim tokens=200 ttft_ms=300 tool="Bash:echo hi" thinking]]``: between ``[[sim`` and ``]]`` stand keys, flags
and values, separated by white space; a value, or a part of one, may be quoted with ``"`` (inside quotes ``\\"`` and
``\\\\`` are escapes).  Several directives in one text are read as one, the last value of a key wins.

Over 300 lines because the menu is one thing: each key with its meaning, its form and its bounds.
Pure and without I/O.  ``Directives`` is a ``NamedTuple`` and not a dataclass because importing ``dataclasses`` would
cost every simulated process 9 ms and 1.6 MB.  Callers: ``simulator.cli`` and its siblings, ``simulator.messages_api``.
"""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

OPENING: Final = "[[sim"
CLOSING: Final = "]]"
MAX_TAG: Final = 12
MAX_ECHO: Final = 2000
_WORD: Final = re.compile(r"[A-Za-z]+")
_PIECE: Final = re.compile(r"\S+\s*|\s+")
_PART: Final = re.compile(r'(?P<close>]])|\s+|"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<plain>[^\s"\]]+|])', re.DOTALL)
_ESCAPE: Final = re.compile(r"\\(.)", re.DOTALL)
_NUMBER: Final = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?", re.ASCII)
_TOOL_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,127}")


class DirectiveError(ValueError):
    """A directive that cannot be read: an unknown key, a bad value, or one that does not end."""


class Directives(NamedTuple):
    """What the stand-in shall do in this turn; the defaults are a short answer at full speed.

    The first group concerns the model's reply and is understood by both stand-ins, the second the process itself and
    is understood by ``simulator.cli`` alone (``simulator.messages_api`` ignores it).
    """

    present: bool = False
    """A directive stood in the text; without one the reply proves memory instead of counting tokens."""
    tokens: int = 12
    ttft_ms: float = 0.0
    """Delay before the first content delta, in milliseconds."""
    itl_ms: float = 0.0
    """Delay between two deltas, in milliseconds."""
    tool: tuple[str, str] | None = None
    """(name, argument) of the tool that the model calls first; ``tool_input`` makes the input of it."""
    tool_times: int = 1
    """How often it calls it, one request after the other, before it answers."""
    thinking: bool = False
    error: int | None = None
    """HTTP status (400..599) with which the Messages API refuses the request."""
    error_model: str | None = None
    """A part of a model's name: ``error`` and ``cut_after`` hold only for requests that ask for such a model."""
    cut_after: int | None = None
    """The API's stream breaks off after that many text deltas."""
    text: str | None = None
    """The reply, word for word, in place of counted tokens."""

    burst: bool = False
    """Deltas are written from prepared buffers, many lines per write; the text is the same.  Unpaced, and ignored
    beside what counts deltas one by one (``cut_after``, ``die_after``, ``hang``)."""
    die_after: int | None = None
    """SIGKILL to itself after that many text deltas of the turn; 0: before ``system/init``."""
    hang: int | None = None
    """Nothing is written or read any more after that many text deltas; 0: before ``system/init``."""
    exit_code: int | None = None
    """Leave with this code: at once in ``SIMULATOR_FAULTS``, else in place of the turn's first delta."""
    ignore_term: bool = False
    ignore_eof: bool = False
    grandchild: float = 0.0
    """Seconds for which a grandchild holds stdout and stderr open; it stays in the process group."""
    detached: bool = False
    """The grandchild leads a session of its own, out of reach of a group kill."""
    grow: int = 0
    """MiB of memory that the process takes, and keeps."""
    bad_utf8: bool = False
    garbage_line: bool = False
    garbage: int = 0
    """So many lines that are no message, of each kind in ``simulator.floods`` in turn."""
    blank: int = 0
    """Bytes of empty lines and of lines of blanks."""
    huge_line: int = 0
    """Bytes of one very long, valid line that is written in the turn."""
    endless: int = 0
    """Bytes of a line that never ends; then nothing is written or read any more."""
    flood: tuple[int, int, float] | None = None
    """BYTES:LINE:RATE: that many bytes of lines of LINE bytes (256), at RATE MB/s (0: as fast as they go).  Lines of
    less than 200 are no messages."""
    pour: tuple[int, int, int, float] | None = None
    """LINES:LOW-HIGH:RATE: that many text deltas of LOW to HIGH bytes (250-350), RATE per second (0: as fast as they
    go), from prepared buffers; they come before the reply's own text and are no part of it.  See ``simulator.pour``."""
    unknown_frame: bool = False
    """Two frames of a later version are written: one of a new type, one ``system`` frame of a new subtype."""
    split_writes: int = 0
    """Bytes per write: every line of the turn is written in pieces."""
    stderr_flood: int = 0
    """Bytes written to stderr."""
    never_ready: bool = False
    slow_start: float = 0.0
    """Seconds before the first line of stdin is read."""
    version: str | None = None
    """The version that the program claims to be."""


DEFAULTS: Final = Directives()


def parse(text: str, base: Directives = DEFAULTS) -> Directives:
    """The directives in ``text``; keys that are not there keep the value of ``base``.

    Raises ``DirectiveError`` (its text names the key) for an unknown key, a bad value or a directive without end.
    """
    fields: dict[str, Any] = {}
    for _, _, words in _directives(text):
        fields.update(_fields(words))
        fields["present"] = True
    return base._replace(**fields)


def parse_words(line: str) -> Directives:
    """The same language without its brackets: ``SIMULATOR_FAULTS="slow_start=2 ignore_term"``."""
    inside = f"{line} {CLOSING}"
    words, end = _words(inside, 0)
    if end != len(inside):
        raise DirectiveError(f'"{CLOSING}" does not belong here')
    return DEFAULTS._replace(**_fields(words))


def for_model(found: Directives, model: str) -> Directives:
    """``found`` as a request for ``model`` sees it: without ``error`` and ``cut_after`` if they name another one."""
    if found.error_model is None or found.error_model in model:
        return found
    return found._replace(error=None, cut_after=None)


def plain(text: str) -> str:
    """``text`` without its directives: what the user really said."""
    kept: list[str] = []
    position = 0
    for start, end, _ in _directives(text):
        kept.append(text[position:start])
        position = end
    return "".join([*kept, text[position:]]).strip()


def tag(text: str) -> str:
    """The word that counted tokens are made of: the first of the user's own, or ``w``."""
    found = _WORD.search(plain(text))
    return found.group()[:MAX_TAG].lower() if found else "w"


def token_text(index: int, word: str = "w") -> str:
    """The ``index``-th token of a counted reply, its blank included: ``hello7 ``."""
    return f"{word}{index} "


def reply_pieces(text: str, directives: Directives, earlier: int) -> Iterator[str]:
    """The text deltas of the reply to the user's ``text``, in order.

    ``earlier`` is the number of earlier user messages in the conversation: a reply without directives names it, so
    that whoever reads it can tell whether the conversation was remembered.
    """
    if directives.text is not None:
        return iter(_PIECE.findall(directives.text))
    if not directives.present:
        said = plain(text)[:MAX_ECHO]
        return iter(_PIECE.findall(f"You said: {said}\nEarlier messages of yours: {earlier}."))
    word = tag(text)
    return (token_text(index, word) for index in range(directives.tokens))


def tool_input(tool: tuple[str, str]) -> dict[str, Any]:
    """The ``input`` of the call, in the shape of the real tool; an argument that is a JSON object is taken as is."""
    name, argument = tool
    if argument.startswith("{"):
        try:
            value = json.loads(argument)
        except (ValueError, RecursionError) as error:
            raise DirectiveError(f"tool: the argument is no JSON object: {error}") from error
        return dict(value)
    shapes: dict[str, dict[str, Any]] = {
        "Bash": {"command": argument, "description": "Run a command"},
        "Read": {"file_path": argument},
        "Write": {"file_path": argument, "content": "written by the simulator\n"},
        "WebFetch": {"url": argument, "prompt": "Summarise"},
    }
    return shapes.get(name, {"argument": argument} if argument else {})


def _directives(text: str) -> Iterator[tuple[int, int, list[str]]]:
    """(start, end, words) of every directive in ``text``."""
    position = 0
    while (start := text.find(OPENING, position)) >= 0:
        position = start + len(OPENING)
        if text[position : position + 1].isspace() or text.startswith(CLOSING, position):
            words, position = _words(text, position)
            yield start, position, words


def _words(text: str, position: int) -> tuple[list[str], int]:
    """The words from ``position`` up to the closing brackets, and the position behind these."""
    words: list[str] = []
    word: list[str] = []
    while part := _PART.match(text, position):
        position = part.end()
        if part["quoted"] is not None:
            word.append(_ESCAPE.sub(r"\1", part["quoted"]))
        elif part["plain"] is not None:
            word.append(part["plain"])
        else:
            if word:
                words.append("".join(word))
            word = []
            if part["close"]:
                return words, position
    raise DirectiveError('a directive without end: "]]" or a closing quote is missing')


def _fields(words: list[str]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if key not in _KEYS:
            raise DirectiveError(f"{key[:32]}: unknown key")
        convert, flag = _KEYS[key]
        if not equals:
            if flag is None:
                raise DirectiveError(f"{key}: needs a value")
            fields[key] = flag
            continue
        try:
            fields[key] = convert(value)
        except ValueError as error:
            raise DirectiveError(f"{key}: {value[:64]!r}: {error}") from error
    return fields


def _count(low: int, high: int) -> Callable[[str], int]:
    def convert(value: str) -> int:
        if not (value.isascii() and value.isdigit() and len(value) <= 12 and low <= int(value) <= high):
            raise ValueError(f"not a whole number from {low} to {high}")
        return int(value)

    return convert


def _duration(high: float) -> Callable[[str], float]:
    def convert(value: str) -> float:
        if not _NUMBER.fullmatch(value) or float(value) > high:
            raise ValueError(f"not a number from 0 to {high:g}")
        return float(value)

    return convert


def _flag(value: str) -> bool:
    if value not in {"true", "false", "1", "0"}:
        raise ValueError("not true or false")
    return value in {"true", "1"}


def _tool(value: str) -> tuple[str, str]:
    name, _, argument = value.partition(":")
    if not _TOOL_NAME.fullmatch(name):
        raise ValueError("not of the form NAME:ARGUMENT")
    tool_input((name, argument))
    return name, argument


def _flood(value: str) -> tuple[int, int, float]:
    size, _, rest = value.partition(":")
    line, _, rate = rest.partition(":")
    return (
        _count(1, 100_000 * _MEGABYTE)(size),
        _count(2, 16 * _MEGABYTE)(line or "256"),
        _duration(10_000)(rate or "0"),
    )


def _pour(value: str) -> tuple[int, int, int, float]:
    lines, _, rest = value.partition(":")
    sizes, _, rate = rest.partition(":")
    low, dash, high = (sizes or "250-350").partition("-")
    least = _count(1, _MEGABYTE)(low)
    most = _count(least, _MEGABYTE)(high if dash else low)
    return _count(1, 1000 * _MEGABYTE)(lines), least, most, _duration(100_000)(rate or "0")


_MEGABYTE: Final = 1_000_000
_KEYS: Final[dict[str, tuple[Callable[[str], Any], Any]]] = {
    # key: (how its value is read, the value of the bare word or None if it needs one)
    "tokens": (_count(0, 10 * _MEGABYTE), None),
    "ttft_ms": (_duration(3_600_000), None),
    "itl_ms": (_duration(3_600_000), None),
    "tool": (_tool, None),
    "tool_times": (_count(0, 100), None),
    "thinking": (_flag, True),
    "error": (_count(400, 599), None),
    "error_model": (str, None),
    "cut_after": (_count(0, _MEGABYTE), None),
    "text": (str, None),
    "burst": (_flag, True),
    "die_after": (_count(0, _MEGABYTE), 0),
    "hang": (_count(0, _MEGABYTE), 0),
    "exit_code": (_count(0, 255), None),
    "ignore_term": (_flag, True),
    "ignore_eof": (_flag, True),
    "grandchild": (_duration(3600), 60.0),
    "detached": (_flag, True),
    "grow": (_count(1, 4096), 256),
    "bad_utf8": (_flag, True),
    "garbage_line": (_flag, True),
    "unknown_frame": (_flag, True),
    "garbage": (_count(0, _MEGABYTE), 8),
    "blank": (_count(0, 256 * _MEGABYTE), _MEGABYTE),
    "huge_line": (_count(1, 256 * _MEGABYTE), 12 * _MEGABYTE),
    "endless": (_count(1, 100_000 * _MEGABYTE), 256 * _MEGABYTE),
    "flood": (_flood, (256 * _MEGABYTE, 256, 0.0)),
    "pour": (_pour, None),
    "split_writes": (_count(1, _MEGABYTE), 7),
    "stderr_flood": (_count(1, 100_000 * _MEGABYTE), _MEGABYTE),
    "never_ready": (_flag, True),
    "slow_start": (_duration(3600), None),
    "version": (str, None),
}
