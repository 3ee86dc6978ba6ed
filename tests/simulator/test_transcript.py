"""Transcripts: where they lie, what they remember, when they are written."""

import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator import transcript
from simulator.transcript import NoConversation, Transcript, project_dir, text_of

ID = "0b4e0b4e-aaaa-4bbb-8ccc-0b4e0b4e0b4e"
OTHER = "0b4e0b4e-aaaa-4bbb-8ccc-000000000000"
CWD = "/srv/tenant one"


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLAUDE_CONFIG_DIR", str(tmp_path))
    return tmp_path


def said(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def test_the_folder_is_named_after_the_directory(config: Path) -> None:
    """Every other character becomes a dash; a very long name is cut and told apart by a checksum."""
    assert project_dir("/srv/tenant_1.x") == str(config / "projects" / "-srv-tenant-1-x")
    long = [Path(project_dir("/" + "x" * 300 + end)).name for end in ("a", "b")]
    assert long[0] != long[1]
    assert max(map(len, long)) < 255


def test_nothing_is_written_before_its_time(config: Path) -> None:
    """The first lines wait for their delay or for ``flush``; later ones go out at once."""
    kept = Transcript(ID, CWD, "2.1.329")
    now = time.monotonic()
    assert kept.sooner(None) is None
    kept.user(said("one"), "", now)
    assert kept.due == now + transcript.FIRST_WRITE_DELAY_S
    assert 0 < (kept.sooner(None) or 0) <= transcript.FIRST_WRITE_DELAY_S
    assert kept.sooner(0.0) == 0.0
    kept.flush_if_due()
    assert transcript.find(ID, CWD) is None
    kept.flush()
    path = Path(transcript.find(ID, CWD) or "")
    kept.user(said("two"), "u-2", now)
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    assert [entry["message"]["content"] for entry in entries] == ["one", "two"]
    assert [entry["parentUuid"] for entry in entries] == [None, entries[0]["uuid"]]
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def test_what_was_said_is_taken_up(config: Path) -> None:
    """Messages and costs come back; a fork leaves the original alone."""
    kept = Transcript(ID, CWD, "2.1.329")
    kept.user(said("one"), "", 0.0)
    kept.assistant({"id": "msg_1", "model": "claude-sonnet-5-5", "content": []}, "u-1")
    kept.end({"totalCostUSD": 0.5})
    kept.assistant({"id": "msg_2", "model": "claude-sonnet-5-5", "content": []}, "u-2")
    again = Transcript(ID, CWD, "2.1.329")
    again.take_up(ID, CWD)
    assert again.earlier == 1
    assert again.cost_state["totalCostUSD"] == 0.5
    fork = Transcript(OTHER, CWD, "2.1.329")
    fork.take_up(ID, "/elsewhere")
    fork.user(said("two"), "", 0.0)
    fork.flush()
    assert fork.earlier == 2
    assert len(Path(transcript.find(ID, CWD) or "").read_bytes().splitlines()) == 4
    assert len(Path(transcript.find(OTHER, CWD) or "").read_bytes().splitlines()) == 4


def test_a_conversation_is_taken_up_to_a_message(config: Path) -> None:
    """What came behind the message that is named is forgotten; a message that is not there is no conversation."""
    kept = Transcript(ID, CWD, "2.1.329")
    for number in (1, 2):
        kept.user(said("text"), f"u-{number}", 0.0)
        kept.assistant({"id": f"msg_{number}", "content": []}, f"a-{number}")
    kept.flush()
    again = Transcript(OTHER, CWD, "2.1.329")
    again.take_up(ID, CWD, "a-1")
    assert again.earlier == 1
    with pytest.raises(NoConversation):
        Transcript(OTHER, CWD, "2.1.329").take_up(ID, CWD, "a-3")


def test_a_file_without_messages_is_no_conversation(config: Path) -> None:
    """Garbage is told from a conversation."""
    path = Path(project_dir(CWD)) / f"{ID}.jsonl"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"garbage\n")
    with pytest.raises(NoConversation):
        Transcript(ID, CWD, "2.1.329").take_up(ID, CWD)


def test_an_unknown_conversation_is_none(config: Path) -> None:
    """Neither an id without a file nor one that is no UUID is found."""
    for session_id in (ID, "../../etc/passwd", ""):
        assert transcript.find(session_id, CWD) is None
        with pytest.raises(NoConversation):
            Transcript(OTHER, CWD, "2.1.329").take_up(session_id, CWD)
    assert transcript.latest(CWD) is None


@given(lines=st.lists(st.binary(max_size=40)))
def test_foreign_lines_are_skipped(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]) -> None:
    """Whatever stands in the file, it is read, and only what the user said counts."""
    root = tmp_path_factory.mktemp("config")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLAUDE_CONFIG_DIR", str(root))
        path = Path(project_dir(CWD)) / f"{ID}.jsonl"
        path.parent.mkdir(parents=True)
        good = json.dumps({"type": "user", "message": said("hello")}).encode()
        path.write_bytes(b"\n".join([*lines, good, b'{"type":"user","message":5}', b"null", b'{"torn']))
        kept = Transcript(ID, CWD, "2.1.329")
        kept.take_up(ID, CWD)
        assert kept.earlier == 1


def test_text_is_found_in_every_shape_of_content() -> None:
    """A string, text blocks among others, and nonsense."""
    blocks = [{"type": "text", "text": "a"}, {"type": "image"}, 5, {"type": "text"}, {"type": "text", "text": "b"}]
    assert [text_of(value) for value in ("x", blocks, None, {"a": 1})] == ["x", "a\nb", "", ""]
