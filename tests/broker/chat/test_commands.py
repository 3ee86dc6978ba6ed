"""A line that begins with a slash becomes a frame, or a mistake that is told to the person who typed it."""

import base64
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.chat.commands import COMMANDS, Local, Mistake, help_text, wish_of
from protocol.codec import decode_client
from protocol.controls import decode_control
from protocol.frames import ControlRequest
from tests.soak import size


def request(**payload: Any) -> dict[str, Any]:
    return {"type": "control_request", "request": payload}


GOOD: dict[str, Any] = {
    "/model opus": request(subtype="set_model", model="opus"),
    "/model default": request(subtype="set_model", model=None),
    "/mode plan": request(subtype="set_permission_mode", mode="plan"),
    "/thinking 4000": request(subtype="set_max_thinking_tokens", max_thinking_tokens=4000),
    "/thinking default": request(subtype="set_max_thinking_tokens", max_thinking_tokens=None),
    "/settings": request(subtype="get_settings"),
    '/settings {"effortLevel":"low"}': request(subtype="apply_flag_settings", settings={"effortLevel": "low"}),
    "/mcp": request(subtype="mcp_status"),
    "/mcp reconnect acme": request(subtype="mcp_reconnect", serverName="acme"),
    "/mcp off acme": request(subtype="mcp_toggle", serverName="acme", enabled=False),
    "/mcp on acme": request(subtype="mcp_toggle", serverName="acme", enabled=True),
    "/mcp set {}": request(subtype="mcp_set_servers", servers={}),
    "/context": request(subtype="get_context_usage"),
    "/interrupt": request(subtype="interrupt"),
    "/stop b1": request(subtype="stop_task", task_id="b1"),
    "/rewind m-1": request(subtype="rewind_files", user_message_id="m-1", dry_run=False),
    "/rewind m-1 dry": request(subtype="rewind_files", user_message_id="m-1", dry_run=True),
    "/steer and  now this": {"type": "user_message", "content": "and  now this", "steer": True},
    "/cancel m-2": {"type": "broker.cancel", "id": "m-2"},
    "/history": {"type": "broker.history", "limit": 20},
    "/history 7": {"type": "broker.history", "limit": 7},
    "/end": {"type": "broker.end"},
    "/delete": {"type": "broker.delete"},
    '/raw {"type":"broker.ping","t":1}': {"type": "broker.ping", "t": 1},
}
LOCAL = {
    "/help": Local("help"), "/quit": Local("quit"), "/fork": Local("fork"),
    "/credential ANTHROPIC_API_KEY": Local("credential", "ANTHROPIC_API_KEY"),
}  # fmt: skip
BAD = [
    "/nope", "/", "/ model", "/model", "/mode ", "/thinking x", "/thinking ٣", "/thinking 9999999999", "/settings {",
    "/settings @/nowhere/at/all", "/mcp dance", "/mcp reconnect", "/mcp set", "/mcp set [", "/steer", "/cancel",
    "/stop", "/rewind", "/history x", "/raw", "/raw 5", "/raw {}", '/raw {"type":5}', "/image", "/image /nowhere.png",
    "/image ~nobody-at-all/x.png", "/raw " + "[" * 50_000,
    "/image /etc/hostname", "/image a.pdf", "/pdf a.png", '/image "', "/credential",
]  # fmt: skip


@pytest.mark.parametrize("line", GOOD)
def test_a_command_becomes_a_frame_that_the_broker_takes(line: str) -> None:
    """The frame is as written here, and decodes as the broker would decode it."""
    wish = wish_of(line)
    assert wish == GOOD[line]
    frame = decode_client(msgspec.json.encode({**GOOD[line], "request_id": "c1"} if "request" in GOOD[line] else wish))
    if isinstance(frame, ControlRequest):
        decode_control(frame.request, frame.request_id)


def test_what_the_program_does_itself() -> None:
    """Help, leaving, branching and reading a variable are nobody else's business."""
    assert {line: wish_of(line) for line in LOCAL} == LOCAL


@pytest.mark.parametrize("line", BAD)
def test_a_mistake_is_told(line: str) -> None:
    """An unknown name, a missing or wrong argument, a file that cannot be read."""
    with pytest.raises(Mistake) as caught:
        wish_of(line)
    assert str(caught.value)


def test_every_command_is_tried_and_helped() -> None:
    """No command without its line of help and its case here."""
    tried = {line[1:].split(" ")[0] for line in [*GOOD, *LOCAL]} | {"image", "pdf"}
    assert tried == COMMANDS.keys()
    assert len(help_text().splitlines()) == len(COMMANDS)


def test_files_become_blocks(tmp_path: Path) -> None:
    """A picture alone, a picture with words behind it, a document, and JSON from a file."""
    picture, document = tmp_path / "a b.PNG", tmp_path / "c.pdf"
    picture.write_bytes(b"png")
    document.write_bytes(b"%PDF")
    (tmp_path / "s.json").write_text('{"effortLevel":"high"}')
    image = {
        "type": "image",
        "source": {"type": "base64", "media_type": "image/png", "data": base64.b64encode(b"png").decode()},
    }
    assert wish_of(f"/image '{picture}'") == {"type": "user_message", "content": [image]}
    words = {"type": "text", "text": "what is it"}
    assert wish_of(f"/image '{picture}' what is it") == {"type": "user_message", "content": [image, words]}
    wish = wish_of(f"/pdf {document}")
    assert isinstance(wish, dict)
    assert wish["content"][0]["type"] == "document"
    assert wish_of(f"/settings @{tmp_path / 's.json'}") == request(
        subtype="apply_flag_settings", settings={"effortLevel": "high"}
    )
    (tmp_path / "big.png").write_bytes(bytes(6 * 2**20 + 1))
    with pytest.raises(Mistake, match="more than"):
        wish_of(f"/image {tmp_path / 'big.png'}")


@given(st.sampled_from(sorted(COMMANDS)), st.text(max_size=24))
@settings(max_examples=size(50, 200), deadline=None)
def test_no_line_breaks_the_program(name: str, rest: str) -> None:
    """Whatever follows a command, it is a wish or a mistake."""
    with suppress(Mistake):
        assert isinstance(wish_of(f"/{name} {rest}"), dict | Local)
