"""The generated JSON Schema: the committed bytes are those of the structs, and it judges frames as the structs do."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from msgspec import Struct

import protocol.schema
from protocol.codec import encode_server, splice_seq
from protocol.frames import ClientFrame, ServerFrame
from protocol.options import SessionOptions
from protocol.schema import SEQUENCED, documents
from protocol.schema.__main__ import main
from tests.protocol.strategies import instances
from tests.soak import size

HERE = Path(protocol.schema.__file__).parent
SCHEMAS: dict[str, Any] = {name: msgspec.json.decode(content) for name, content in documents().items()}
CLIENT: tuple[type[Struct], ...] = get_args(ClientFrame)
SERVER: tuple[type[Struct], ...] = get_args(ServerFrame)


def validator(name: str) -> Any:
    return Draft202012Validator(SCHEMAS[name])


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_committed_schema_is_the_generated_one(name: str) -> None:
    """A change of a struct comes with ``make schema``: the files hold exactly what the structs give now."""
    assert (HERE / name).read_bytes() == documents()[name]


def test_nothing_but_the_generated_files_lies_there() -> None:
    """A schema that is no longer generated is removed."""
    assert {path.name for path in HERE.glob("*.json")} == set(documents())


@pytest.mark.parametrize("seed", ["0", "1"])
def test_generating_depends_on_nothing(seed: str) -> None:
    """Two interpreters with different hash seeds give the same bytes."""
    program = "import sys, protocol.schema as s; sys.stdout.buffer.write(b''.join(s.documents().values()))"
    found = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
    )
    assert found.stdout == b"".join(documents().values())


def test_the_program_writes_what_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``python -m protocol.schema`` writes the files beside itself, names those that changed, and leaves the rest."""
    monkeypatch.setattr("protocol.schema.__main__.__file__", str(tmp_path / "__main__.py"))
    main()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == documents()
    assert len(capsys.readouterr().out.split()) == 3
    (tmp_path / "client.json").write_bytes(b"{}")
    main()
    assert capsys.readouterr().out.split() == [str(tmp_path / "client.json")]
    main()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_schema_is_a_schema(name: str) -> None:
    """It is valid JSON Schema 2020-12, and every reference in it leads somewhere."""
    Draft202012Validator.check_schema(SCHEMAS[name])
    text = documents()[name].decode()
    used = {part.split('"')[0] for part in text.split('"#/$defs/')[1:]}
    assert used <= set(SCHEMAS[name]["$defs"])
    assert text.endswith("}\n")


def test_every_frame_is_in_its_schema() -> None:
    """All frames of both vocabularies are described, each with its tag."""
    for name, kinds in (("client.json", CLIENT), ("server.json", SERVER)):
        assert {choice["$ref"] for choice in SCHEMAS[name]["anyOf"]} == {f"#/$defs/{kind.__name__}" for kind in kinds}


@given(data=st.data())
@settings(max_examples=size(20, 60), deadline=None)
def test_a_frame_that_decodes_is_valid(data: st.DataObject) -> None:
    """What the structs make is valid by the schema, in both directions, and so are the options alone."""
    frame = data.draw(st.sampled_from(CLIENT).flatmap(instances))
    value = msgspec.json.decode(msgspec.json.encode(frame))
    if value["type"] not in ("control_request", "control_response"):  # their raw parts are typed in the schema
        validator("client.json").validate(value)
    reply = data.draw(st.sampled_from(SERVER).flatmap(instances))
    line = encode_server(reply)
    if type(reply).__name__ in SEQUENCED:
        line = splice_seq(line, 7)
    validator("server.json").validate(msgspec.json.decode(line))
    options = data.draw(instances(SessionOptions))
    validator("options.json").validate(msgspec.json.decode(msgspec.json.encode(options)))


HELLO = {"type": "broker.hello"}
RULES = {"type": "addRules", "rules": [{"toolName": "Bash"}], "behavior": "allow", "destination": "session"}
HOOKS = {"subtype": "initialize", "hooks": {"PreToolUse": [{"matcher": "Bash|.*", "hookCallbackIds": ["h"]}]}}
TOTAL = {"turns": 1, "input_tokens": 2, "output_tokens": 3, "cost_usd": 0.1}
ANSWER = {"behavior": "allow", "updatedInput": {}, "updatedPermissions": [RULES]}


def controlling(request: object) -> dict[str, object]:
    return {"type": "control_request", "request_id": "r", "request": request}


def answering(response: object) -> dict[str, object]:
    body = {"subtype": "success", "request_id": "r", "response": response}
    return {"type": "control_response", "response": body}


GOOD: list[tuple[str, object]] = [
    ("client.json", HELLO),
    ("client.json", {**HELLO, "options": {"credentials": {"oauth_token": "t"}}}),
    ("client.json", {"type": "user", "message": {"content": "x"}, "session_id": "dropped"}),
    ("client.json", controlling({"subtype": "interrupt"})),
    ("client.json", controlling({"subtype": "set_model", "model": None})),
    ("client.json", answering(ANSWER)),
    ("options.json", {}),
    ("options.json", {"model": "sonnet", "mcp_servers": {"a": {"type": "http", "url": "https://a/"}}}),
    ("options.json", {"mcp_servers": {"a": {"type": "sdk"}, "b": {"type": "stdio", "command": "b"}}, "debug": ""}),
    ("options.json", {"json_schema": {"type": "object", "properties": {"a": {"items": {"$ref": "#"}}}, "if": True}}),
    ("options.json", {"settings": {"permissions": {"allow": ["Bash"]}}, "debug": {"filter": "api"}, "tools": []}),
    ("client.json", {"type": "user_message", "content": "x", "steer": True}),
    ("client.json", {"type": "broker.history", "before": None, "limit": 200}),
    ("client.json", {"type": "broker.delete"}),
    ("client.json", controlling({"subtype": "mcp_toggle", "serverName": "a", "enabled": False})),
    ("client.json", controlling({"subtype": "set_credentials", "credentials": {"api_key": "k"}})),
    ("client.json", controlling(HOOKS)),
    ("client.json", controlling({"subtype": "initialize", "jsonSchema": {"required": ["a"]}, "systemPrompt": [""]})),
    ("server.json", {"type": "broker.history", "frames": [], "more": False}),
    ("server.json", {"type": "broker.debug", "line": "x", "seq": 1}),
    ("server.json", {"type": "broker.state", "total": TOTAL, "seq": 1}),
    ("server.json", {"type": "broker.pong", "t": 1}),
    ("server.json", {"type": "broker.dropped", "bytes": 1, "reason": "not_json", "seq": 1}),
]
BAD: list[tuple[str, object]] = [
    ("client.json", {}),
    ("client.json", {"type": "broker.welcome"}),
    ("client.json", {**HELLO, "nonsense": 1}),
    ("client.json", {**HELLO, "options": {"effort": "ultra"}}),
    ("client.json", {**HELLO, "options": {"temperature": 1}}),
    ("client.json", {"type": "broker.history", "limit": 201}),
    ("client.json", {"type": "broker.delete", "id": "a"}),
    ("client.json", {"type": "user_message", "content": "x", "steer": "now"}),
    ("client.json", controlling({"subtype": "set_credentials", "credentials": {}})),
    ("client.json", controlling({"subtype": "mcp_set_servers", "servers": {"a": {"url": "https://a/"}}})),
    ("client.json", controlling({**HOOKS, "hooks": {"Nope": []}})),
    ("client.json", controlling({**HOOKS, "hooks": {"Stop": [{"hookCallbackIds": []}]}})),
    ("client.json", controlling({"subtype": "initialize", "jsonSchema": {"type": "array"}})),
    ("client.json", {**HELLO, "options": {"credentials": {}}}),
    ("client.json", {**HELLO, "options": {"credentials": {"oauth_token": "t", "api_key": "k"}}}),
    ("client.json", {"type": "user_message", "content": "x", "id": ""}),
    ("client.json", {"type": "user_message", "content": "x", "id": "m-9\n"}),
    ("client.json", controlling({"subtype": "set_cwd"})),
    ("client.json", controlling({"subtype": "interrupt", "more": 1})),
    ("client.json", answering({"behavior": "ask"})),
    ("client.json", answering({**ANSWER, "updatedPermissions": [{"type": "setMode"}]})),
    ("options.json", {"model": "--x"}),
    ("options.json", {"agents": {"a b": {"description": "d", "prompt": "p"}}}),
    ("options.json", {"mcp_servers": {"__proto__": {"type": "sdk"}}}),
    ("options.json", {"json_schema": {"properties": {"a": {"typ": "string"}}}}),
    ("options.json", {"settings": {"env": {}}}),
    ("options.json", {"debug": "-x"}),
    ("options.json", {"fallback_model": "haiku,"}),
    ("options.json", {"tools": ["a,b"]}),
    ("options.json", {"credentials": {"base_url": "https://a/"}}),
    ("server.json", {"type": "broker.dropped", "bytes": 1, "reason": "not_json"}),
    ("server.json", {"type": "broker.dropped", "bytes": 1, "reason": "boredom", "seq": 1}),
    ("server.json", {"type": "broker.debug", "line": "x"}),
    ("server.json", {"type": "assistant"}),
]


def test_the_schema_judges_as_the_structs_do() -> None:
    """Frames of clients, options and frames of the broker, right and wrong."""
    assert [case for case in GOOD if not validator(case[0]).is_valid(case[1])] == []
    assert [case for case in BAD if validator(case[0]).is_valid(case[1])] == []
