"""The JSON Schema of a structured answer, keyword by keyword: what the CLI's validator takes and nothing else.

Callers: ``protocol.options`` (hello), ``protocol.controls`` (``initialize``).  The CLI reads draft 07 strictly.
Given late, a schema that it cannot use is answered with success and silently ignored, and one that is no object ends
its process; so the form is checked here.  Not checked: regular expressions, and keywords that need others beside them.
"""

import re
from collections.abc import Iterator
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

MAX_BYTES: Final = 65536
"""A schema's size as compact JSON.  It is part of every API request of its process."""
MAX_DEPTH: Final = 128
"""Levels of JSON below the schema's own braces; two for a property of a property."""

_encoder = msgspec.json.Encoder()
_ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})")

TypeName: TypeAlias = Literal["array", "boolean", "integer", "null", "number", "object", "string"]
Dialect: TypeAlias = Literal["http://json-schema.org/draft-07/schema#", "http://json-schema.org/draft-07/schema"]
Count: TypeAlias = Annotated[int, Meta(ge=0)]
Number: TypeAlias = int | float
LocalRef = Annotated[str, Meta(pattern=r"^#(/[^\x00-\x20\x7f]*)?$(?!\n)", description="A place in the same schema.")]


class Subschema(
    Struct,
    frozen=True,
    forbid_unknown_fields=True,
    omit_defaults=True,
    rename={
        "ref": "$ref", "defs": "$defs", "comment": "$comment", "if_": "if", "else_": "else", "not_": "not",
    },
):  # fmt: skip
    """A schema within the schema: the keywords of draft 07."""

    type: TypeName | Annotated[list[TypeName], Meta(min_length=1, max_length=7)] | UnsetType = UNSET
    properties: "dict[str, Schema] | UnsetType" = UNSET
    required: list[str] | UnsetType = UNSET
    additionalProperties: "Schema | UnsetType" = UNSET
    patternProperties: "dict[str, Schema] | UnsetType" = UNSET
    propertyNames: "Schema | UnsetType" = UNSET
    minProperties: Count | UnsetType = UNSET
    maxProperties: Count | UnsetType = UNSET
    dependencies: "dict[str, Subschema | bool | list[str]] | UnsetType" = UNSET
    items: "Subschema | bool | Schemas | UnsetType" = UNSET
    additionalItems: "Schema | UnsetType" = UNSET
    contains: "Schema | UnsetType" = UNSET
    minItems: Count | UnsetType = UNSET
    maxItems: Count | UnsetType = UNSET
    uniqueItems: bool | UnsetType = UNSET
    enum: Annotated[list[Any], Meta(min_length=1)] | UnsetType = UNSET
    const: Any = UNSET
    minimum: Number | UnsetType = UNSET
    maximum: Number | UnsetType = UNSET
    exclusiveMinimum: Number | UnsetType = UNSET
    exclusiveMaximum: Number | UnsetType = UNSET
    multipleOf: Number | UnsetType = UNSET
    minLength: Count | UnsetType = UNSET
    maxLength: Count | UnsetType = UNSET
    pattern: str | UnsetType = UNSET
    format: str | UnsetType = UNSET
    nullable: bool | UnsetType = UNSET
    anyOf: "Schemas | UnsetType" = UNSET
    oneOf: "Schemas | UnsetType" = UNSET
    allOf: "Schemas | UnsetType" = UNSET
    not_: "Schema | UnsetType" = UNSET
    if_: "Schema | UnsetType" = UNSET
    then: "Schema | UnsetType" = UNSET
    else_: "Schema | UnsetType" = UNSET
    ref: LocalRef | UnsetType = UNSET
    defs: "dict[str, Schema] | UnsetType" = UNSET
    definitions: "dict[str, Schema] | UnsetType" = UNSET
    title: str | UnsetType = UNSET
    description: str | UnsetType = UNSET
    default: Any = UNSET
    examples: list[Any] | UnsetType = UNSET
    deprecated: bool | UnsetType = UNSET
    readOnly: bool | UnsetType = UNSET
    writeOnly: bool | UnsetType = UNSET
    contentMediaType: str | UnsetType = UNSET
    contentEncoding: str | UnsetType = UNSET
    comment: str | UnsetType = UNSET

    def __post_init__(self) -> None:
        if self.required is not UNSET and len(set(self.required)) < len(self.required):
            raise ValueError("a name is required twice")
        if self.multipleOf is not UNSET and self.multipleOf <= 0:
            raise ValueError("multipleOf has to be more than 0")


Schema: TypeAlias = Subschema | bool
Schemas: TypeAlias = Annotated[list[Schema], Meta(min_length=1)]


class JsonSchema(Subschema, frozen=True, rename={"dialect": "$schema", "id": "$id"}):
    """The schema of the whole answer: an object, since the answer is the input of a tool."""

    type: Literal["object"] | UnsetType = UNSET
    dialect: Dialect | UnsetType = UNSET
    id: Annotated[str, Meta(max_length=512)] | UnsetType = UNSET

    def __post_init__(self) -> None:
        super().__post_init__()
        text = _encoder.encode(self)
        if len(text) > MAX_BYTES:
            raise ValueError(f"the schema has {len(text)} bytes, {MAX_BYTES} are allowed")
        whole = msgspec.json.decode(text)
        if _is_deeper(whole, MAX_DEPTH):
            raise ValueError(f"the schema is nested deeper than {MAX_DEPTH}")
        for ref in _refs(self):
            if not _leads_to_a_schema(whole, ref):
                raise ValueError("a $ref leads to no schema")


def _is_deeper(value: Any, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return levels < 0 or any(_is_deeper(each, levels - 1) for each in inner)


def _refs(value: Any) -> Iterator[str]:
    """Every ``$ref`` of a schema; a property of that name, or a value in an ``enum``, is none."""
    if isinstance(value, Subschema):
        if value.ref is not UNSET:
            yield value.ref
        for name in value.__struct_fields__:
            yield from _refs(getattr(value, name))
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _refs(each)


def _leads_to_a_schema(whole: Any, ref: str) -> bool:
    """Follow a JSON pointer (RFC 6901, section 6: as a fragment)."""
    found = whole
    for part in ref.split("/")[1:]:
        key = _unquoted(part).replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and key.isdecimal() and len(key) < 6 and int(key) < len(found):
            found = found[int(key)]
        elif isinstance(found, dict) and key in found:
            found = found[key]
        else:
            return False
    return isinstance(found, dict | bool)


def _unquoted(part: str) -> str:
    return _ESCAPE.sub(lambda found: bytes([int(found[1], 16)]), part.encode()).decode("utf-8", "replace")
