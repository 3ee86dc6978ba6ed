"""Schemas for structured output: which are ones, and what fits them."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.structured import mismatch, problem

SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer"}, "list": {"type": "array", "items": {"enum": ["a", "b"]}}},
    "required": ["n"],
    "additionalProperties": False,
}
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["n", "list", "type", "x"]), inner),
    max_leaves=8,
)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "bogus"}, {"type": ["string", "bogus"]}, {"properties": []}, {"properties": {"a": 5}}, {"items": "x"},
        {"items": {"type": "bogus"}}, {"$ref": "#/nowhere"}, {"$ref": "elsewhere"},
    ],
)  # fmt: skip
def test_what_is_no_schema(schema: dict[str, Any]) -> None:
    """Unknown types, wrong shapes and references that lead nowhere, at any depth."""
    assert problem(schema)


@pytest.mark.parametrize(
    "schema", [{}, SCHEMA, {"type": ["string", "null"]}, {"$ref": "#/$defs/a", "$defs": {"a": {}}}]
)
def test_what_is_a_schema(schema: dict[str, Any]) -> None:
    """An empty one allows everything."""
    assert problem(schema) is None


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({"n": 4}, None),
        ({"n": 4.0, "list": ["a"]}, None),
        ({"n": "x"}, "/n: must be integer"),
        ({"n": True}, "/n: must be integer"),
        ({}, "root: must have required property 'n'"),
        ({"n": 1, "x": 1}, "root: must NOT have additional properties"),
        ({"n": 1, "list": ["a", "c"]}, "/list/1: must be equal to one of the allowed values"),
        ([], "root: must be object"),
    ],
)
def test_what_fits(value: Any, told: str | None) -> None:
    """What does not fit is told by its path."""
    assert mismatch(SCHEMA, value) == (told and f"Output does not match required schema: {told}")


@given(
    schema=st.dictionaries(st.sampled_from(["type", "properties", "required", "items", "enum"]), VALUES), value=VALUES
)
def test_a_schema_that_is_one_can_be_used(schema: dict[str, Any], value: Any) -> None:
    """Nothing that passes for a schema makes the check of a value fail in another way."""
    if problem(schema) is None:
        mismatch(schema, value)


@given(value=VALUES)
def test_everything_fits_an_empty_schema(value: Any) -> None:
    """No rule, no complaint."""
    assert mismatch({}, value) is None
