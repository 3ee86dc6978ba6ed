"""The reader of the CLI's debug log: every line once, bounded, over renames and restarts of the file."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.processes import debug_log
from broker.processes.debug_log import LINE_BYTES, LOOK_BYTES, DebugLog
from broker.sessions.debug_frames import without
from protocol.options import Credentials
from tests.waiting import eventually


def add(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


@contextmanager
def reading(path: Path) -> Iterator[DebugLog]:
    log = DebugLog(path)
    try:
        yield log
    finally:
        log.close()


@given(st.lists(st.binary(max_size=30), max_size=20))
def test_every_line_is_told_once_however_it_was_written(tmp_path_factory: Any, parts: list[bytes]) -> None:
    """Whatever the writes and looks cut in two comes as one line; empty lines are left out."""
    path: Path = tmp_path_factory.mktemp("log") / "debug.log"
    told: list[str] = []
    with reading(path) as log:
        for part in [*parts, b"\n"]:
            add(path, part)
            told += log.look()
    text = b"".join(parts).split(b"\n")
    assert told == [line.decode(errors="replace") for line in text if line]


def test_nothing_is_there_yet(tmp_path: Path) -> None:
    """A filter that lets nothing through makes no file; one that comes later is read from its beginning."""
    path = tmp_path / "debug.log"
    with reading(path) as log:
        assert log.look() == []
        log.rotate()
        add(path, b"one\n")
        assert log.look() == ["one"]


def test_what_an_earlier_process_wrote_is_not_told_again(tmp_path: Path) -> None:
    """A restored conversation has its file already."""
    path = tmp_path / "debug.log"
    add(path, b"old\n")
    with reading(path) as log:
        add(path, b"new\n")
        assert log.look() == ["new"]


def test_long_lines_are_cut(tmp_path: Path) -> None:
    """The rest of a line is left out, also when it comes with later looks; the next one is whole."""
    path = tmp_path / "debug.log"
    with reading(path) as log:
        add(path, b"a" * (LINE_BYTES + 1))
        assert log.look() == ["a" * LINE_BYTES]
        add(path, b"a" * 50_000)
        assert log.look() == []
        add(path, b"a\nnext\n" + b"b" * 30_000 + b"\nlast\n")
        assert log.look() == ["next", "b" * LINE_BYTES, "last"]


def test_a_flood_is_skipped_and_said(tmp_path: Path) -> None:
    """One look tells the last 64 KiB from the first whole line on, and how much is left out, to the byte."""
    path = tmp_path / "debug.log"
    with reading(path) as log:
        add(path, b"begun")
        assert log.look() == []
        lines = [b"line %06d\n" % number for number in range(20_000)]
        add(path, b"".join(lines))
        note, *told = log.look()
        kept = sum(len(line) + 1 for line in told)
        assert kept <= LOOK_BYTES
        assert kept > LOOK_BYTES - 12
        assert note == f"[{5 + 12 * 20_000 - kept} bytes of the debug log are left out]"
        assert told[-1] == "line 019999"
        add(path, b"x" * 200_000)
        assert log.look() == ["[200000 bytes of the debug log are left out]"]
        add(path, b"\nend\n")
        assert log.look() == ["end"]


def test_a_large_file_is_put_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Renamed, over an earlier one; what was written until then and what comes in the new file is all told."""
    monkeypatch.setattr(debug_log, "KEEP_BYTES", 100)
    path = tmp_path / "debug.log"
    told: list[str] = []
    with reading(path) as log:
        for number in range(50):
            add(path, b"line %d\n" % number)
            told += log.look()
            if number % 3:
                log.rotate()
            add(path, b"more %d\n" % number)
        told += log.look()
        told += log.look()
    assert told == [f"{word} {number}" for number in range(50) for word in ("line", "more")]
    assert path.stat().st_size <= 130
    assert (tmp_path / "debug.log.1").stat().st_size > 100
    assert sorted(os.listdir(tmp_path)) == ["debug.log", "debug.log.1"]


def test_a_file_that_was_emptied_is_read_from_its_beginning(tmp_path: Path) -> None:
    """The agent's tools may do that."""
    path = tmp_path / "debug.log"
    with reading(path) as log:
        add(path, b"one\ntwo\n")
        assert log.look() == ["one", "two"]
        path.write_bytes(b"3\n")
        assert log.look() == ["3"]


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
async def test_only_a_plain_file_is_read(tmp_path: Path, kind: str) -> None:
    """The agent can put a link to a file of the broker's there, or a pipe that nobody feeds: neither is opened."""
    path, secret = tmp_path / "debug.log", tmp_path / "secret"
    secret.write_text("secret\n")
    match kind:
        case "link":
            path.symlink_to(secret)
        case "pipe":
            os.mkfifo(path)
        case _:
            path.mkdir()
    told: list[str] = []
    with reading(path) as log:
        with anyio.fail_after(10):
            await log.follow(lambda: told.extend)
    assert told == []


async def test_followers_are_told_while_they_listen(tmp_path: Path) -> None:
    """Nobody listens: nothing is read, and nothing lost; the last lines come after the end."""
    path = tmp_path / "debug.log"
    told: list[str] = []
    listens = False
    with reading(path) as log:
        async with anyio.create_task_group() as group:
            group.start_soon(log.follow, lambda: told.extend if listens else None)
            add(path, b"one\n")
            await anyio.lowlevel.checkpoint()
            assert told == []
            listens = True
            await eventually(lambda: told == ["one"])
            add(path, b"two\n")
            await eventually(lambda: told == ["one", "two"])
            group.cancel_scope.cancel()
        add(path, b"three\n")
        await log.tell(told.extend)
    assert told == ["one", "two", "three"]


def test_a_credential_is_taken_out() -> None:
    """Whatever its kind, wherever it stands."""
    assert without("a sk-1 b sk-1", Credentials(api_key="sk-1")) == "a [redacted] b [redacted]"
    assert without("Bearer tok", Credentials(oauth_token="tok")) == "Bearer [redacted]"
    assert without("Bearer tok", Credentials(auth_token="tok")) == "Bearer [redacted]"
    assert without("tok", None) == "tok"
