"""Log lines: form, bounds, and what never appears in them."""

import io
import logging
import os
import pty
import re
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from broker import logs
from broker.logs import MAX_CHARS, REDACTED, SECRET_KEYS, configure
from protocol.options import Credentials
from tests.oracle import Oracle

CANARY = "sk-canary-4711"


class Capture(io.BytesIO):
    """Keeps what was logged."""

    def lines(self) -> list[dict[str, Any]]:
        return [msgspec.json.decode(line) for line in self.getvalue().splitlines()]

    def only(self) -> dict[str, Any]:
        (line,) = self.lines()
        return line


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    """Leave the process' logging as it was found."""
    root = logging.getLogger()
    handlers = list(root.handlers)
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    root.handlers = handlers


def capture(level: str = "debug", *, json: bool | None = True) -> Capture:
    stream = Capture()
    configure(level, stream=stream, json=json)
    return stream


LOG = structlog.get_logger("broker.test")

# -- form ------------------------------------------------------------------------------------------------------------


def test_a_line_is_one_json_object() -> None:
    """Time in UTC, level and event come first; values keep their JSON type."""
    stream = capture()
    LOG.info("turn.completed", session="s-1", ttft_ms=3.5, frames=4, first=True, usage=None)
    line = stream.only()
    assert list(line)[:3] == ["timestamp", "level", "event"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", line.pop("timestamp"))
    assert line == {
        "level": "info", "event": "turn.completed", "session": "s-1", "ttft_ms": 3.5, "frames": 4, "first": True,
        "usage": None,
    }  # fmt: skip


def test_context_is_merged() -> None:
    """What was bound to the context appears on every line of the task."""
    stream = capture()
    structlog.contextvars.bind_contextvars(tenant="acme", token=CANARY)
    LOG.info("hello")
    assert (stream.only()["tenant"], stream.only()["token"]) == ("acme", REDACTED)


@pytest.mark.parametrize(("level", "count"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_the_level_filters(level: str, count: int) -> None:
    """Lines below the level are not written."""
    stream = capture(level)
    for name in ("debug", "info", "warning", "error"):
        getattr(LOG, name)("x")
    assert len(stream.lines()) == count


def test_an_unknown_level_is_refused() -> None:
    """Only the four levels exist."""
    with pytest.raises(ValueError, match="debug, info, warning, error"):
        configure("trace")


def test_a_later_set_up_holds_for_loggers_in_use() -> None:
    """A module's logger follows the newest configure()."""
    first = capture()
    LOG.info("one")
    second = capture()
    LOG.info("two")
    assert [first.only()["event"], second.only()["event"]] == ["one", "two"]


def test_a_terminal_gets_the_console_form() -> None:
    """On a terminal lines are for reading, anywhere else they are JSON."""
    parent, child = pty.openpty()
    with os.fdopen(child, "wb", buffering=0) as terminal:
        configure("info", stream=terminal)
        LOG.info("hello", tenant="acme", token=CANARY)
        shown = os.read(parent, 4096).decode()
    os.close(parent)
    assert "hello" in shown
    assert "acme" in shown
    assert not shown.startswith("{")
    assert CANARY not in shown
    plain = Capture()
    configure("info", stream=plain)
    LOG.info("hello")
    assert plain.only()["event"] == "hello"


@pytest.mark.parametrize("is_closed", [True, False])
def test_a_log_that_cannot_be_written_ends_nothing(is_closed: bool) -> None:
    """When the reader of the log has gone, logging goes on without it."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb", buffering=0) as broken:
        if is_closed:
            broken.close()
        configure("info", stream=broken)
        LOG.info("nobody reads this")


# -- secrets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [*sorted(SECRET_KEYS), "Authorization", "API-KEY", "System_Prompt"])
@pytest.mark.parametrize("json", [True, False])
def test_a_secret_key_is_redacted_at_any_depth(key: str, json: bool) -> None:
    """The value of a secret key never appears, whatever its type and however deep it lies."""
    stream = capture(json=json)
    LOG.info("x", **{key: CANARY})
    LOG.info("x", **{key: [CANARY]})
    LOG.info("x", outer={"list": [{key: CANARY}, {key: {"a": CANARY}}]})
    assert CANARY not in stream.getvalue().decode()
    assert stream.getvalue().decode().count(REDACTED) == 4


class Holder(msgspec.Struct):
    """A struct whose encoding would show a secret."""

    token: str

    def __repr__(self) -> str:
        return "Holder()"


@pytest.mark.parametrize(
    "value",
    [Credentials(api_key=CANARY), Holder(CANARY), [Holder(CANARY)], CANARY.encode(), {"a": bytearray(CANARY.encode())}],
)
def test_an_object_is_told_by_its_text_form(value: object) -> None:
    """Structs are not written field by field, and bytes only by their number."""
    stream = capture()
    LOG.info("x", value=value)
    assert CANARY not in stream.getvalue().decode()
    assert base64_of(CANARY) not in stream.getvalue().decode()


def base64_of(text: str) -> str:
    return msgspec.json.encode(text.encode()).decode().strip('"')


def test_local_variables_are_never_shown() -> None:
    """An exception is told by type, message and places; locals and source lines stay out."""
    stream = capture()

    def fails(secret_argument: str) -> None:
        raise ValueError("it broke")  # local canary

    try:
        fails(CANARY)
    except ValueError:
        LOG.exception("bug")
    (told,) = stream.only()["exception"]
    assert (told["type"], told["message"]) == ("ValueError", "it broke")
    assert told["places"][-1].startswith("broker/test_logs.py:")
    assert told["places"][-1].endswith(" fails")
    assert CANARY not in stream.getvalue().decode()
    assert "local canary" not in stream.getvalue().decode()


def test_causes_and_groups_are_told_and_bounded() -> None:
    """Causes, contexts and members of a group follow, at most five in all, each message bounded."""
    stream = capture()
    try:
        try:
            raise KeyError("inner\n" + "x" * 1000)
        except KeyError as error:
            raise ExceptionGroup("many", [OSError(str(n)) for n in range(9)]) from error
    except ExceptionGroup:
        LOG.exception("bug")
    told = stream.only()["exception"]
    assert len(told) == 5
    assert told[0]["type"] == "ExceptionGroup"
    assert all(len(one["message"]) <= MAX_CHARS + 1 and "\n" not in one["message"] for one in told)
    console = capture(json=False)
    LOG.error("bug", exc_info=ValueError("plain"))
    assert "ValueError: plain" in console.getvalue().decode()


# -- bounds ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("json", [True, False])
def test_a_text_cannot_forge_a_line(json: bool) -> None:
    """Control characters, line separators and escapes are replaced, in keys and values."""
    stream = capture(json=json)
    LOG.info("a\nb\x1b[31m", value="x\r\ny\u2028z\x9b", **{"k\ney": 1})
    text = stream.getvalue().decode().rstrip("\n")
    assert not re.search("[\x00-\x1f\x7f-\x9f\u2028]", text)


def test_long_values_are_cut() -> None:
    """A text is cut at 256 characters, a table or list at 32 entries, a nesting at 4."""
    stream = capture()
    deep: dict[str, Any] = {}
    for _ in range(50):
        deep = {"d": deep}
    LOG.info("x" * 5000, value="y" * 5000, items=list(range(1000)), deep=deep, big=10**5000)
    line = stream.only()
    assert len(line["event"]) == len(line["value"]) == MAX_CHARS + 1
    assert len(line["items"]) == 32
    assert len(stream.getvalue()) < 2000


ANY_TEXT = st.text(st.characters(exclude_categories=()))


def test_too_many_fields_leave_the_event() -> None:
    """A line with a hundred fields keeps its time, level, event, exception and 32 of the fields."""
    stream = capture()
    LOG.error("busy", exc_info=ValueError("why"), **{f"f{number}": number for number in range(100)})
    line = stream.only()
    assert (line["event"], line["level"], line["exception"][0]["message"]) == ("busy", "error", "why")
    assert len(line) == 4 + 32


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.binary() | ANY_TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(ANY_TEXT | st.integers(), inner) | st.tuples(inner),
    max_leaves=8,
)


@given(st.dictionaries(st.from_regex(r"[a-z]{1,8}", fullmatch=True).filter(lambda key: key != "event"), VALUES))
def test_any_value_gives_one_line(values: dict[str, Any]) -> None:
    """Whatever is logged, the result is exactly one decodable line."""
    stream = capture()
    LOG.info("x", **values)
    assert stream.getvalue().count(b"\n") == 1
    assert stream.only()["event"] == "x"


# -- other people's loggers ------------------------------------------------------------------------------------------


def test_the_standard_library_is_routed(oracle: Oracle) -> None:
    """Warnings of other packages come out in our form, with the logger's name and the exception."""
    oracle.may_log_tracebacks = True
    stream = capture()
    try:
        raise OSError("gone")
    except OSError:
        logging.getLogger("websockets.server").exception("opening %s failed", "handshake")
    line = stream.only()
    assert (line["event"], line["logger"], line["level"]) == ("opening handshake failed", "websockets.server", "error")
    assert line["exception"][0]["type"] == "OSError"


def test_payloads_at_debug_are_never_taken() -> None:
    """websockets logs headers and frames below WARNING: not even our DEBUG shows them."""
    stream = capture("debug")
    logger = logging.getLogger("websockets.server")
    logger.setLevel(logging.DEBUG)
    logger.debug("> Authorization: %s", CANARY)
    logger.info("connection open")
    assert stream.getvalue() == b""


def test_a_bad_format_does_not_raise() -> None:
    """A record whose arguments do not fit is told by its format."""
    stream = capture()
    (bridge,) = [handler for handler in logging.getLogger().handlers if isinstance(handler, logs._Bridge)]
    bridge.handle(logging.LogRecord("other", logging.WARNING, "file", 1, "%d", ("x",), None))
    assert stream.only()["event"] == "%d"


def test_only_one_bridge_is_installed() -> None:
    """Configuring twice does not double the lines, and leaves foreign handlers alone."""
    foreign = logging.NullHandler()
    logging.getLogger().addHandler(foreign)
    capture()
    stream = capture()
    logging.getLogger("other").warning("once")
    assert len(stream.lines()) == 1
    assert foreign in logging.getLogger().handlers
    assert sum(isinstance(handler, logs._Bridge) for handler in logging.getLogger().handlers) == 1
