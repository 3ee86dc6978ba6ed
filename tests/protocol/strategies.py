"""Hypothesis strategies for this folder: JSON values, and any struct of ``protocol`` from its own type information.

``instances(cls)`` honours every constraint that the struct declares, so that whatever it makes must decode.
"""

import re
from typing import Any

import msgspec
from hypothesis import strategies as st
from msgspec import Raw, Struct
from msgspec import inspect as shapes

from protocol.json_schema import JsonSchema, Subschema
from protocol.options import Credentials

TEXT = st.text(max_size=12) | st.sampled_from(
    ["", "\u2028", "\u2029\x85", '"\\', "\x00\x1f\x7f", "\U0001f600", "a\nb\r"]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(TEXT | st.sampled_from(["type", "seq", "uuid", "message"]), JSON, max_size=4)


def instances(cls: type[Struct]) -> st.SearchStrategy[Any]:
    """Any valid instance of ``cls``."""
    if cls is Credentials:
        return _credentials()
    if cls is JsonSchema:
        return schemas()
    info = shapes.type_info(cls)
    assert isinstance(info, shapes.StructType)
    required = {field.name: _values(field.type) for field in info.fields if field.required}
    optional = {field.name: _values(field.type) for field in info.fields if not field.required}
    return st.fixed_dictionaries(required, optional=optional).map(lambda given: cls(**given))


def schemas(levels: int = 2) -> st.SearchStrategy[JsonSchema]:
    """Any valid JSON Schema, ``levels`` of schemas deep."""
    return _keywords(JsonSchema, levels)


def _keywords(cls: type[Subschema], levels: int) -> st.SearchStrategy[Any]:
    info = shapes.type_info(cls)
    assert isinstance(info, shapes.StructType)
    inner = st.booleans() if levels == 0 else st.booleans() | _keywords(Subschema, levels - 1)
    special: dict[str, st.SearchStrategy[Any]] = {
        "required": st.lists(TEXT, max_size=2, unique=True),
        "multipleOf": st.sampled_from([1, 0.5]),
        "ref": st.just("#"),
    }
    fields = {
        field.name: special[field.name] if field.name in special else _schema_values(field.type, inner)
        for field in info.fields
    }
    some = st.lists(st.sampled_from(sorted(fields)), max_size=4, unique=True)
    chosen = some.flatmap(lambda names: st.fixed_dictionaries({name: fields[name] for name in names}))
    return chosen.map(lambda given: cls(**given))


def _schema_values(info: shapes.Type, inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """As ``_values``, with ``inner`` wherever a schema stands within the schema."""
    match info:
        case shapes.Metadata():
            return _schema_values(info.type, inner)
        case shapes.UnionType():
            return st.one_of([_schema_values(each, inner) for each in info.types])
        case shapes.StructType():
            return inner
        case shapes.ListType():
            return st.lists(_schema_values(info.item_type, inner), min_size=info.min_length or 0, max_size=2)
        case shapes.DictType():
            return st.dictionaries(TEXT, _schema_values(info.value_type, inner), max_size=2)
        case _:
            return _plain(info)


def _credentials() -> st.SearchStrategy[Credentials]:
    info = shapes.type_info(Credentials)
    assert isinstance(info, shapes.StructType)
    kinds = {field.name: _values(field.type) for field in info.fields}
    base_url = {"base_url": kinds.pop("base_url")}
    one = st.sampled_from(sorted(kinds)).flatmap(
        lambda kind: st.fixed_dictionaries({kind: kinds[kind]}, optional=base_url)
    )
    return one.map(lambda given: Credentials(**given))


def _values(info: shapes.Type) -> st.SearchStrategy[Any]:
    match info:
        case shapes.Metadata():
            return _values(info.type)
        case shapes.StructType():
            return instances(info.cls)
        case shapes.UnionType():
            return st.one_of([_values(each) for each in info.types])
        case shapes.ListType():
            return st.lists(_values(info.item_type), min_size=info.min_length or 0, max_size=2)
        case shapes.DictType():
            return st.dictionaries(_values(info.key_type), _values(info.value_type), max_size=2)
        case _:
            return _plain(info)


def _plain(info: shapes.Type) -> st.SearchStrategy[Any]:
    match info:
        case shapes.StrType():
            return _text(info)
        case shapes.IntType():
            return st.integers(-(2**53) if info.ge is None else info.ge, 2**53 if info.le is None else info.le)
        case shapes.FloatType():
            return st.floats(info.gt, info.le, exclude_min=info.gt is not None, allow_nan=False, allow_infinity=False)
        case shapes.LiteralType():
            return st.sampled_from(info.values)
        case shapes.EnumType():
            return st.sampled_from(list(info.cls))
        case shapes.BoolType():
            return st.booleans()
        case shapes.NoneType():
            return st.none()
        case shapes.RawType():
            return OBJECTS.map(lambda value: Raw(msgspec.json.encode(value)))
        case _:
            assert isinstance(info, shapes.AnyType), info
            return JSON


def _text(info: shapes.StrType) -> st.SearchStrategy[str]:
    least, most = info.min_length or 0, info.max_length
    if info.pattern is None:
        return st.text(min_size=least, max_size=min(most or 20, 20))
    found = st.from_regex(re.compile(info.pattern.replace(r"$(?!\n)", r"\Z")), fullmatch=True)
    return found.filter(lambda text: len(text) >= least and (most is None or len(text) <= most))
