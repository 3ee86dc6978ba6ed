"""Structured output: the schema that a session's answers must fit, and the tool through which the model gives them.

Pure.  Only what schemas are usually made of is checked: ``type``, ``enum``, ``const``, ``properties``, ``required``,
``additionalProperties``, ``items``; everything else is taken as satisfied.
Callers: ``simulator.flag_values``, ``simulator.settings``, ``simulator.conversation``.
"""

from collections.abc import Iterator
from typing import Any, Final

TOOL: Final = "StructuredOutput"
PROVIDED: Final = "Structured output provided successfully"
ENFORCE: Final = (
    "[structured-output-enforce] You MUST call the StructuredOutput tool to complete this request. Call this tool now."
)
"""What the CLI says in the user's name, once in a turn, to a model that did not call the tool."""
_TYPES: Final[dict[str, tuple[type, ...]]] = {
    "object": (dict,), "array": (list,), "string": (str,), "number": (int, float), "integer": (int,),
    "boolean": (bool,), "null": (type(None),),
}  # fmt: skip


def problem(schema: dict[str, Any]) -> str | None:
    """Why ``schema`` is none, or None if it is one."""
    kinds = schema.get("type", [])
    for kind in kinds if isinstance(kinds, list) else [kinds]:
        if not isinstance(kind, str) or kind not in _TYPES:
            return "data/type must be equal to one of the allowed values"
    reference = schema.get("$ref")
    if isinstance(reference, str) and not _is_there(schema, reference):
        return f"can't resolve reference {reference} from id #"
    properties = schema.get("properties", {})
    if not isinstance(properties, dict):
        return "data/properties must be object"
    for name in ("required", "enum"):
        if not isinstance(schema.get(name, []), list):
            return f"data/{name} must be array"
    if not all(isinstance(name, str) for name in schema.get("required", ())):
        return "data/required/0 must be string"
    below = [*properties.values(), *([schema["items"]] if "items" in schema else [])]
    for inner in below:
        if not isinstance(inner, (dict, bool)):
            return "data/properties must be object,boolean"
        if isinstance(inner, dict) and (found := problem(inner)):
            return found
    return None


def mismatch(schema: dict[str, Any], value: Any) -> str | None:
    """What the model is told of an input that does not fit, or None if it fits."""
    wrong = list(_wrong(schema, value, ""))
    return f"Output does not match required schema: {', '.join(wrong)}" if wrong else None


def _wrong(schema: Any, value: Any, path: str) -> Iterator[str]:
    if not isinstance(schema, dict):
        if schema is False:
            yield f"{path or 'root'}: boolean schema is false"
        return
    kinds = schema.get("type")
    allowed = kinds if isinstance(kinds, list) else [kinds] if kinds else []
    if allowed and not any(_is(kind, value) for kind in allowed):
        yield f"{path or 'root'}: must be {','.join(allowed)}"
        return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{path or 'root'}: must be equal to one of the allowed values"
    if "const" in schema and value != schema["const"]:
        yield f"{path or 'root'}: must be equal to constant"
    if isinstance(value, dict):
        yield from _wrong_object(schema, value, path)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _wrong(schema.get("items", True), item, f"{path}/{index}")


def _wrong_object(schema: dict[str, Any], value: dict[str, Any], path: str) -> Iterator[str]:
    properties = schema.get("properties", {})
    for name in schema.get("required", ()):
        if name not in value:
            yield f"{path or 'root'}: must have required property '{name}'"
    for name, inner in value.items():
        if name in properties:
            yield from _wrong(properties[name], inner, f"{path}/{name}")
        elif schema.get("additionalProperties") is False:
            yield f"{path or 'root'}: must NOT have additional properties"


def _is(kind: str, value: Any) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    return isinstance(value, _TYPES[kind]) or (kind == "integer" and isinstance(value, float) and value.is_integer())


def _is_there(schema: dict[str, Any], reference: str) -> bool:
    found: Any = schema
    for step in filter(None, reference.removeprefix("#").split("/")):
        found = found.get(step) if isinstance(found, dict) else None
    return reference.startswith("#") and found is not None
