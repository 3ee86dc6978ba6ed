"""JSON Schemas of structured answers: taken where the real CLI's validator takes them, refused where it does not."""

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.controls import DECODE_ERRORS
from protocol.json_schema import MAX_BYTES, MAX_DEPTH, JsonSchema
from tests.protocol.strategies import JSON, schemas
from tests.soak import size

DRAFT_07 = "http://json-schema.org/draft-07/schema#"


def decode(value: Any) -> JsonSchema:
    return msgspec.json.decode(msgspec.json.encode(value), type=JsonSchema)


def property_(**keywords: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": keywords}}


def nested(levels: int) -> dict[str, Any]:
    """``levels`` braces below the outermost ones."""
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels // 2):
        schema = {"properties": {"a": schema}}
    return schema


GOOD: dict[str, dict[str, Any]] = {
    "empty": {},
    "no-type": {"properties": {"a": {"type": "integer"}}},
    "every-type": property_(type=["array", "boolean", "integer", "null", "number", "object", "string"]),
    "numbers": property_(minimum=0, maximum=9.5, exclusiveMinimum=-1, exclusiveMaximum=10, multipleOf=0.5),
    "texts": property_(type="string", minLength=1, maxLength=9, pattern="^a", format="nope", nullable=True),
    "lists": property_(type="array", items=[{"type": "string"}], additionalItems=False, minItems=0, maxItems=1),
    "list-of-one-kind": property_(type="array", items=True, contains={}, uniqueItems=True),
    "objects": {
        "patternProperties": {"^a": {}}, "propertyNames": {"pattern": "^a"}, "additionalProperties": False,
        "minProperties": 1, "maxProperties": 3, "required": [], "dependencies": {"a": ["b"], "c": {}, "d": True},
    },
    "choices": property_(anyOf=[{"type": "string"}, {"not": {}}], oneOf=[True], allOf=[{}], enum=[1, None], const=None),
    "conditions": {"if": {"required": ["a"]}, "then": {"required": ["b"]}, "else": {}},
    "words": property_(
        title="t", description="d", default=None, examples=[{"type": 7}], deprecated=True, readOnly=True,
        writeOnly=False, contentMediaType="text/html", contentEncoding="base64", **{"$comment": "c"},
    ),
    "head": {"$schema": DRAFT_07, "$id": "https://example.com/a", "type": "object"},
    "refs": {
        "definitions": {"A/B c~": {"items": [{"type": "string"}]}}, "$defs": {"b": True},
        "properties": {
            "a": {"$ref": "#/definitions/A~1B%20c~0/items/0"}, "b": {"$ref": "#/$defs/b"}, "self": {"$ref": "#"},
            "$ref": {"type": "string", "enum": [{"$ref": "#/nowhere"}]}, "__proto__": {},
        },
    },
    "deep": nested(MAX_DEPTH),
    "large": {"description": "d" * (MAX_BYTES - 18)},
}  # fmt: skip
BAD: dict[str, tuple[Any, str]] = {
    "not-an-object": ([], "Expected `object`"),
    "another-type": ({"type": "string"}, "`$.type`"),
    "types": ({"type": ["object", "null"]}, "`$.type`"),
    "no-such-type": (property_(type="str"), "`$.properties[...].type`"),
    "no-types": (property_(type=[]), "`$.properties[...].type`"),
    "unknown-keyword": ({"x-order": 1}, "`x-order`"),
    "of-another-draft": (property_(prefixItems=[{}]), "`prefixItems`"),
    "discriminator": ({"discriminator": {"propertyName": "a"}}, "`discriminator`"),
    "another-draft": ({"$schema": "https://json-schema.org/draft/2020-12/schema"}, "`$.$schema`"),
    "id-below": (property_(**{"$id": "#a"}), "`$id`"),
    "properties-as-list": ({"properties": []}, "`$.properties`"),
    "property-as-text": ({"properties": {"a": "string"}}, "`$.properties[...]`"),
    "required-as-text": ({"required": "a"}, "`$.required`"),
    "required-twice": (property_(required=["a", "a"]), "twice - at `$.properties[...]`"),
    "required-twice-at-the-top": ({"required": ["a", "a"]}, "twice"),
    "minimum-as-text": (property_(minimum="1"), "`$.properties[...].minimum`"),
    "exclusive-as-flag": (property_(minimum=1, exclusiveMinimum=True), "`$.properties[...].exclusiveMinimum`"),
    "negative-length": (property_(minLength=-1), "`$.properties[...].minLength`"),
    "broken-length": (property_(maxLength=2.5), "`$.properties[...].maxLength`"),
    "multiple-of-nothing": (property_(multipleOf=0), "multipleOf has to be more than 0 - at `$.properties[...]`"),
    "format-as-number": (property_(format=3), "`$.properties[...].format`"),
    "nothing-to-choose": (property_(enum=[]), "`$.properties[...].enum`"),
    "no-choices": ({"anyOf": []}, "`$.anyOf`"),
    "choices-as-object": ({"allOf": {}}, "`$.allOf`"),
    "ref-to-nowhere": (property_(**{"$ref": "#/$defs/B"}), "leads to no schema"),
    "ref-to-a-text": ({"description": "d", "properties": {"a": {"$ref": "#/description"}}}, "leads to no schema"),
    "ref-into-a-list": ({"required": ["a"], "items": [{"$ref": "#/items/7"}]}, "leads to no schema"),
    "ref-abroad": (property_(**{"$ref": "https://example.com/s"}), "`$.properties[...].$ref`"),
    "ref-to-an-anchor": (property_(**{"$ref": "#A"}), "`$.properties[...].$ref`"),
    "too-deep": (nested(MAX_DEPTH + 2), f"deeper than {MAX_DEPTH}"),
    "too-deep-in-a-value": (property_(default=nested(MAX_DEPTH)), f"deeper than {MAX_DEPTH}"),
    "too-large": ({"description": "d" * (MAX_BYTES - 17)}, f"has {MAX_BYTES + 1} bytes, {MAX_BYTES} are allowed"),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_schema_comes_back_as_it_was(name: str) -> None:
    """Every keyword of draft 07 is taken, and what the CLI gets is what the client gave."""
    assert msgspec.json.decode(msgspec.json.encode(decode(GOOD[name]))) == GOOD[name]


@pytest.mark.parametrize("name", BAD)
def test_a_mistake_is_told_with_its_path(name: str) -> None:
    """What the CLI would silently ignore is refused, in one line that says where."""
    schema, path = BAD[name]
    with pytest.raises(msgspec.ValidationError) as caught:
        decode(schema)
    assert path in str(caught.value)
    assert len(str(caught.value)) < 200


def test_depth_without_end_is_refused() -> None:
    """Nesting that no decoder follows is one of the errors that every decode edge catches."""
    with pytest.raises(DECODE_ERRORS):
        msgspec.json.decode(b'{"not":' * 100_000, type=JsonSchema)


@given(schemas())
@settings(max_examples=size(25, 100), deadline=None)
def test_any_schema_comes_back(schema: JsonSchema) -> None:
    """Whatever the keywords hold, a schema is encoded to itself."""
    assert decode(msgspec.to_builtins(schema)) == schema


@given(
    st.dictionaries(
        st.sampled_from(["type", "properties", "items", "$ref", "enum", "required", "not"]), JSON, max_size=4
    )
)
@settings(max_examples=size(50, 200), deadline=None)
def test_nothing_else_is_raised(value: dict[str, Any]) -> None:
    """Anything is a schema or one of the errors that every decode edge catches."""
    try:
        found = decode(value)
    except DECODE_ERRORS:
        return
    assert msgspec.to_builtins(found) == value
