"""Reading a file from its end: the same lines as from its beginning, in bounded steps, and only from plain files."""

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.processes.session_directory import SessionDirectory, Transcript
from broker.sessions import transcript
from broker.sessions.transcript import SCAN_THREADS, Scans, lines_from_end, open_plain, read_page
from tests.waiting import eventually

LINES = st.lists(st.binary(max_size=12).map(lambda text: text.replace(b"\n", b"")), max_size=12)


def from_end(path: Path, scan: int = 1 << 20, longest: int = 1 << 20, chunk: int = 5) -> list[bytes]:
    """The lines of ``path``, newest first."""
    fd = open_plain(str(path))
    try:
        return list(lines_from_end(fd, scan, longest, chunk))
    finally:
        os.close(fd)


@given(st.binary(max_size=80), st.integers(1, 12))
def test_the_lines_are_those_of_the_file(content: bytes, chunk: int) -> None:
    """Whatever the size of a step, splitting at line ends gives the same lines in reverse; U+2028 and CR end none."""
    path = Path("/dev/shm") / f"lines-{os.getpid()}"
    path.write_bytes(content)
    try:
        expected = content.split(b"\n")[::-1] if content else [b""]
        assert from_end(path, chunk=chunk) == expected
    finally:
        path.unlink()


@given(LINES, st.integers(1, 40), st.integers(1, 9))
def test_the_scan_is_bounded(lines: list[bytes], scan: int, chunk: int) -> None:
    """Only lines that lie whole within the last bytes come, and all of them."""
    content = b"".join(line + b"\n" for line in lines)
    path = Path("/dev/shm") / f"scan-{os.getpid()}"
    path.write_bytes(content)
    try:
        whole = content.split(b"\n")[::-1]
        expected, used = [], 0
        for index, line in enumerate(whole):
            used += len(line) + (index > 0)
            if used > scan or (used == scan and used < len(content)):
                break
            expected.append(line)
        found = from_end(path, scan=scan, chunk=chunk)
        assert found == (expected if content else [b""])
    finally:
        path.unlink()


def test_a_line_that_is_too_long_is_left_out(tmp_path: Path) -> None:
    """Its neighbours come, and its bytes are not held."""
    path = tmp_path / "t.jsonl"
    path.write_bytes(b"first\n" + b"x" * 1000 + b"\nlast\n")
    assert from_end(path, longest=100) == [b"", b"last", b"first"]


def test_a_link_and_a_pipe_are_no_transcript(tmp_path: Path) -> None:
    """What an agent puts in the place of its transcript is neither followed nor waited for."""
    (tmp_path / "real").write_text("secret\n")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("link", "pipe", "folder", "nothing"):
        with pytest.raises(OSError, match=r".*"):
            open_plain(str(tmp_path / name))


def user(uuid: str) -> bytes:
    """A line of a user."""
    return json.dumps({"type": "user", "uuid": uuid, "message": {"role": "user", "content": "a"}}).encode() + b"\n"


def place(tmp_path: Path) -> tuple[Transcript, Path]:
    """A transcript that the broker has found, and its file, with nothing in it."""
    directory = SessionDirectory(tmp_path / "session")
    folder = directory.config / "projects" / "-work"
    folder.mkdir(parents=True)
    found = Transcript(directory, "-work", "id")
    return found, folder / found.name


def scans(threads: int = SCAN_THREADS) -> Scans:
    """A conversation's own, of a broker's whole."""
    return Scans(anyio.CapacityLimiter(threads))


async def test_without_a_transcript_the_page_is_empty(tmp_path: Path) -> None:
    """No file yet, or no longer: nothing was said, nothing more is there, whatever ``before`` names."""
    gone, _ = place(tmp_path)
    places: list[Callable[[], Transcript | None]] = [lambda: None, lambda: gone]
    for find in places:
        found = await read_page(scans(), find, "u-1", 10)
        assert (found.frames, found.more, found.found) == ([], False, True)


async def test_an_answer_that_is_still_to_be_written_is_waited_for(tmp_path: Path) -> None:
    """Until the moment given the file is looked at again; then the page goes out as it is."""
    there, path = place(tmp_path)
    path.write_bytes(user("u-1"))
    before = time.monotonic()
    assert len((await read_page(scans(), lambda: there, None, 10, settles_until=before + 0.2)).frames) == 1
    assert time.monotonic() >= before + 0.2
    path.write_bytes(user("u-1") + user("u-2").replace(b'"user"', b'"assistant"', 1))
    before = time.monotonic()
    assert len((await read_page(scans(), lambda: there, None, 10, settles_until=before + 30)).frames) == 2
    assert time.monotonic() < before + 10


async def test_a_torn_last_line_is_tolerated(tmp_path: Path) -> None:
    """A kill in the middle of a write costs that line and no other."""
    there, path = place(tmp_path)
    path.write_bytes(user("u-1") + user("u-2") + user("u-3")[:40])
    found = await read_page(scans(), lambda: there, None, 10)
    assert [json.loads(frame)["uuid"] for frame in found.frames] == ["u-1", "u-2"]


async def test_a_link_that_comes_after_the_look_is_not_read(tmp_path: Path) -> None:
    """An agent that exchanges a folder between the look and the reading shows nothing from elsewhere."""
    found, path = place(tmp_path)
    path.write_bytes(user("u-1"))
    projects = found.directory.config / "projects"

    def find() -> Transcript:
        projects.rename(tmp_path / "elsewhere")
        projects.symlink_to(tmp_path / "elsewhere")
        return found

    assert (await read_page(scans(), find, None, 10)).frames == []


class Looks:
    """Looks of several conversations that stay until they are let go."""

    def __init__(self) -> None:
        self.running: list[str] = []
        self.most = 0
        self.go = threading.Event()
        self._lock = threading.Lock()

    def look(self, name: str) -> None:
        """In a thread."""
        with self._lock:
            self.running.append(name)
            self.most = max(self.most, len(self.running))
        assert self.go.wait(20)
        with self._lock:
            self.running.remove(name)


async def test_a_conversation_is_read_by_one_at_a_time_and_all_of_them_by_few() -> None:
    """However many ask: two threads in all, one of a conversation, and other work has threads of its own."""
    limiter, looks = anyio.CapacityLimiter(SCAN_THREADS), Looks()
    one, other, third = Scans(limiter), Scans(limiter), Scans(limiter)
    async with anyio.create_task_group() as group:
        for _ in range(50):
            group.start_soon(one.run, looks.look, "one")
        await eventually(lambda: looks.running == ["one"])
        group.start_soon(other.run, looks.look, "other")
        await eventually(lambda: looks.running == ["one", "other"])
        group.start_soon(third.run, looks.look, "third")
        await eventually(lambda: limiter.statistics().tasks_waiting == 1)
        assert await anyio.to_thread.run_sync(lambda: list(looks.running)) == ["one", "other"]
        looks.go.set()
    assert (looks.running, looks.most) == ([], SCAN_THREADS)


def test_a_long_conversation_is_read_from_its_end_in_a_moment(tmp_path: Path) -> None:
    """The newest page of 20,000 lines costs a step or two, not the file."""
    path = tmp_path / "t.jsonl"
    path.write_bytes(b"".join(user(f"u-{number}") for number in range(20_000)))
    fd = open_plain(str(path))
    try:
        lines = lines_from_end(fd)
        newest = [next(lines) for _ in range(51)]
        assert newest[1] == user("u-19999").rstrip()
        assert path.stat().st_size > 2 * transcript.CHUNK_BYTES
    finally:
        os.close(fd)
