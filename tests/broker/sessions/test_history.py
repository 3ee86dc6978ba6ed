"""Transcript lines to frames: what was said and nothing else, in pages that fit together."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.sessions import history
from broker.sessions.history import page, said
from tests.protocol.strategies import JSON

KEYS = {"type", "message", "uuid", "session_id", "timestamp", "parent_tool_use_id"}


def entry(kind: str = "user", content: Any = "hello", uuid: str = "u-1", **others: Any) -> dict[str, Any]:
    """A line of a transcript, with the fields that the real ones carry and no client shall see."""
    message: dict[str, Any] = {"role": kind, "content": content}
    if kind == "assistant":
        message |= {"id": "msg_1", "type": "message", "model": "claude-sonnet-5", "usage": {"input_tokens": 1}}
    return {
        "parentUuid": None, "isSidechain": False, "type": kind, "message": message, "uuid": uuid,
        "timestamp": "2026-11-21T09:23:44.398Z", "userType": "external", "entrypoint": "sdk-cli",
        "cwd": "/secret/place", "sessionId": "s-1", "version": "2.1.197", "gitBranch": "HEAD", "promptSource": "sdk",
        "requestId": "req_1",
    } | others  # fmt: skip


def line(**fields: Any) -> bytes:
    """The same, as bytes."""
    return json.dumps(entry(**fields)).encode()


def shown(lines: list[bytes], before: str | None = None, limit: int = 50) -> list[dict[str, Any]]:
    """The frames of a page of a transcript whose lines are given oldest first."""
    return [json.loads(frame) for frame in page(reversed(lines), before, limit).frames]


def test_a_frame_has_the_shape_of_the_clis_stdout_and_nothing_of_the_transcript() -> None:
    """Type, message, uuid, session_id, timestamp and parent_tool_use_id; no directory, no branch, no version."""
    for kind in ("user", "assistant"):
        found = said(line(kind=kind))
        assert found is not None
        frame = json.loads(found.frame)
        assert set(frame) == KEYS
        assert frame["message"] == entry(kind)["message"]
        assert (frame["session_id"], frame["parent_tool_use_id"], frame["uuid"]) == ("s-1", None, "u-1")
        assert b"secret" not in found.frame


NOT_SAID = {
    "sidechain": {"isSidechain": True},
    "reminder": {"isMeta": True},
    "summary": {"isCompactSummary": True, "isVisibleInTranscriptOnly": True},
    "notification": {"origin": {"kind": "task-notification"}, "promptSource": "system"},
    "command": {"content": "<command-name>/clear</command-name>", "promptSource": None},
    "output-of-a-command": {"content": "<local-command-stdout>Compacted</local-command-stdout>", "promptSource": None},
    "no-uuid": {"uuid": ""},
    "another-kind": {"kind": "system"},
    "no-message": {"message": None},
    "message-is-text": {"message": "hello"},
    "uuid-is-a-number": {"uuid": 7},
}


@pytest.mark.parametrize("fields", NOT_SAID.values(), ids=NOT_SAID)
def test_what_nobody_said_is_left_out(fields: dict[str, Any]) -> None:
    """Subagents, the CLI's own notes in the user's name, its commands, and lines of another form."""
    assert said(line(**fields)) is None


@pytest.mark.parametrize("text", [b"", b"null", b"[]", b"{}", b'"user"', b"{", b"\xff", b"\x00", line()[:-1]])
def test_what_is_no_whole_line_is_left_out(text: bytes) -> None:
    """A torn line, bytes that are no JSON, JSON that is no object."""
    assert said(text) is None


def test_the_clis_filler_is_left_out_and_its_api_errors_stay() -> None:
    """Behind a killed turn the CLI writes an answer that no model gave; an API error was shown to the user."""
    message = {"role": "assistant", "content": [{"type": "text", "text": "No response requested."}]}
    invented = {"message": message | {"model": history.INVENTED_MODEL}}
    assert said(line(kind="assistant", **invented)) is None
    assert said(line(kind="assistant", isApiErrorMessage=False, **invented)) is None
    assert said(line(kind="assistant", isApiErrorMessage=True, **invented)) is not None


def test_a_message_that_joined_a_turn_stands_where_it_was_taken_in() -> None:
    """It is an attachment in the transcript, and comes as the user's message under the user's own id."""
    attachment = {"type": "queued_command", "prompt": "and this", "source_uuid": "m-2", "commandMode": "prompt"}
    found = said(line(kind="attachment", message=None, attachment=attachment))
    assert found is not None
    frame = json.loads(found.frame)
    assert (frame["type"], frame["uuid"]) == ("user", "m-2")
    assert frame["message"] == {"role": "user", "content": "and this"}
    for other in ({"commandMode": "task-notification"}, {"type": "skill_listing"}, {"prompt": None}):
        fields = {key: value for key, value in (attachment | other).items() if value is not None}
        assert said(line(kind="attachment", message=None, attachment=fields)) is None


def test_a_page_says_whether_the_newest_message_has_its_answer() -> None:
    """A user's message waits for it, an interruption and an assistant's frame do not."""
    stopped = [{"type": "text", "text": "[Request interrupted by user]"}]
    for last, is_answered in ((line(), False), (line(content=stopped), True), (line(kind="assistant"), True)):
        found = page([b'{"type":"last-prompt"}', last, line(uuid="u-0")], None, 10)
        assert found.is_answered is is_answered
    assert not page([], None, 10).is_answered


def test_half_a_character_does_not_lose_the_frame() -> None:
    """The CLI cuts texts by UTF-16 unit: the half that is left is replaced."""
    raw = line(content="cut").replace(b"cut", b"cut\\ud83d")
    found = said(raw)
    assert found is not None
    assert json.loads(found.frame)["message"]["content"].startswith("cut")


NOISE = st.sampled_from(
    [b"", b"garbage", b'{"type":"queue-operation"}', line(isMeta=True, uuid="x"), line(isSidechain=True, uuid="y"),
     json.dumps({"type": "api-request-blob", "message": {"role": "user", "content": "a"}}).encode(), b'{"type":"us']
)  # fmt: skip


@given(st.lists(st.lists(NOISE, max_size=3), min_size=0, max_size=40), st.integers(1, 12))
def test_pages_fit_together(noise: list[list[bytes]], limit: int) -> None:
    """Going back from the newest page by page gives every frame once, in order, whatever lies between the lines."""
    uuids = [f"u-{number}" for number in range(len(noise))]
    lines = [text for uuid, between in zip(uuids, noise, strict=True) for text in (line(uuid=uuid), *between)]
    found: list[str] = []
    before, more = None, True
    while more:
        one = page(reversed(lines), before, limit)
        part = [json.loads(frame)["uuid"] for frame in one.frames]
        assert one.found
        assert len(part) <= limit
        assert not (one.more and not part)
        found, before, more = part + found, part[0] if part else None, one.more
    assert found == uuids


@given(st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=12), st.integers(1, 6))
def test_a_line_that_stands_there_twice_counts_once(uuids: list[str], limit: int) -> None:
    """A CLI may write a line again; the later one counts, on every page."""
    frames = shown([line(uuid=uuid) for uuid in uuids], None, 50)
    newest_first = list(dict.fromkeys(reversed(uuids)))
    assert [frame["uuid"] for frame in frames] == newest_first[::-1]
    assert [f["uuid"] for f in shown([line(uuid=u) for u in uuids], None, limit)] == newest_first[:limit][::-1]


def test_an_unknown_position_is_told() -> None:
    """``before`` that is nowhere: nothing is shown, and the page says so."""
    found = page([line(uuid="u-1")], "nowhere", 10)
    assert (found.frames, found.more, found.found) == ([], False, False)


def test_no_more_lines_are_read_than_the_page_needs() -> None:
    """The newest page of a long conversation costs its own lines."""
    taken = 0

    def lines() -> Any:
        nonlocal taken
        for number in range(1000):
            taken += 1
            yield line(uuid=f"u-{number}")

    assert len(page(lines(), None, 5).frames) == 5
    assert taken == 6


def test_a_page_is_bounded_in_bytes_and_never_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large frames make small pages; a single one goes out whatever its size."""
    monkeypatch.setattr(history, "PAGE_BYTES", 3000)
    lines = [line(uuid=f"u-{number}", content="x" * 1000) for number in range(5)] + [
        line(uuid="large", content="y" * 9000)
    ]
    assert [frame["uuid"] for frame in shown(lines)] == ["large"]
    assert [frame["uuid"] for frame in shown(lines, "large")] == ["u-3", "u-4"]


@given(st.dictionaries(st.sampled_from(sorted(entry())), JSON), st.binary(max_size=30))
def test_no_line_breaks_the_page(fields: dict[str, Any], junk: bytes) -> None:
    """Whatever an agent writes into its transcript, a frame is valid JSON with these six keys, or is left out."""
    for text in (json.dumps(entry() | fields).encode(), junk, line() + junk):
        found = said(text)
        if found is not None:
            frame = json.loads(found.frame)
            assert set(frame) == KEYS
            assert isinstance(frame["message"], dict)
            assert all(isinstance(frame[key], str) for key in ("uuid", "session_id", "timestamp", "type"))
