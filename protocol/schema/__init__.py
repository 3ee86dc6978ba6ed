"""The wire language as JSON Schema 2020-12, generated from the structs that decode and encode it.

``client.json``: what a client may send; ``server.json``: what the broker itself says (lines of the CLI pass through and
are not described); ``options.json``: ``options`` of ``broker.hello``.  ``python -m protocol.schema`` writes them again;
``tests/protocol/test_schema.py`` fails when the files and the structs differ.  Callers: that program, that test.
"""

from typing import Any, TypeAlias, get_args

import msgspec

from protocol import answers, controls, frames, options

Schema: TypeAlias = dict[str, Any]

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_REF = "#/$defs/{name}"
SEQUENCED = ("Message", "TurnCompleted", "TurnFailed", "RequestResolved", "State", "Debug", "Dropped")
"""Frames of the session: the log adds ``seq`` as their last key."""


def documents() -> dict[str, bytes]:
    """File name to content, the same bytes at every call."""
    made = {"client.json": _client(), "server.json": _server(), "options.json": _options()}
    return {name: msgspec.json.format(msgspec.json.encode(schema), indent=2) + b"\n" for name, schema in made.items()}


def _client() -> Schema:
    wanted = (frames.ClientFrame, controls.Control, controls.AddRules, controls.PermissionAnswer, *answers.KINDS)
    (frame, control, update, *kinds), defs = msgspec.json.schema_components(wanted, ref_template=_REF)
    # These parts are raw in their frame and decoded a second time.
    defs["ControlRequest"]["properties"]["request"] = control
    defs["ControlAnswer"]["properties"]["response"] = {"anyOf": kinds}
    defs["PermissionAnswer"]["properties"]["updatedPermissions"]["items"] = update
    _exactly_one_credential(defs)
    _hook_events(defs)
    return _document("broker.v1: frames of a client", "Every text message of a client is one of these.", frame, defs)


def _server() -> Schema:
    (frame,), defs = msgspec.json.schema_components((frames.ServerFrame,), ref_template=_REF)
    for name in SEQUENCED:
        defs[name]["properties"]["seq"] = {"type": "integer", "minimum": 1}
        defs[name]["required"].append("seq")
    return _document(
        "broker.v1: frames of the broker",
        "What the broker itself says. Every other frame is a line of the CLI with `seq` as its last key.",
        frame,
        defs,
    )


def _options() -> Schema:
    (schema,), defs = msgspec.json.schema_components((options.SessionOptions,), ref_template=_REF)
    _exactly_one_credential(defs)
    return _document("broker.v1: options of broker.hello", "Every option may be left out.", schema, defs)


def _exactly_one_credential(defs: Schema) -> None:
    defs["Credentials"]["oneOf"] = [{"required": [kind]} for kind in ("oauth_token", "api_key", "auth_token")]


def _hook_events(defs: Schema) -> None:
    """msgspec leaves out the keys of an object where they are a choice."""
    events = {"enum": sorted(get_args(controls.HookEvent))}
    for choice in defs["Initialize"]["properties"]["hooks"]["anyOf"]:
        if choice["type"] == "object":
            choice["propertyNames"] = events


def _document(title: str, description: str, schema: Schema, defs: Schema) -> Schema:
    return {"$schema": DIALECT, "title": title, "description": description, **schema, "$defs": defs}
