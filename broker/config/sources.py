"""Read a struct tree from layers of settings and name the exact key of a mistake.

Owner: none, these are functions.  Callers: ``broker.config.tree`` (the broker's own configuration) and ``broker.auth``
(``tenants.toml``).  A layer is a nested dict; the later layer wins.  Nothing here knows which keys exist: the struct
tree says it.  A value is walked key by key, not converted as a whole, because msgspec's own error path leaves out the
names of dict entries.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import msgspec
from msgspec import NODEFAULT, Meta, Struct

from broker.errors import ConfigError

ENV_PREFIX = "BROKER__"
MAX_FILE_BYTES = 4 * 1024 * 1024
SECRET = Meta(extra={"secret": True})
"""Marks a type whose value is never shown in an error."""

S = TypeVar("S", bound=Struct)
Layer = dict[str, Any]


class Text(str):
    """A value that arrives as text (a variable, a flag) and is read leniently; ``source`` names where it came from."""

    __slots__ = ("source",)
    source: str

    def __new__(cls, value: str, source: str) -> "Text":
        text = super().__new__(cls, value)
        text.source = source
        return text


# -- layers ----------------------------------------------------------------------------------------------------------


def toml_layer(path: Path) -> Layer:
    """Read a TOML file.  Raises ``ConfigError`` naming the file when it cannot be read or is not TOML."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        raise ConfigError(str(path), f"cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(str(path), "is too large", f"at most {MAX_FILE_BYTES} bytes")
    try:
        return tomllib.loads(data.decode())
    except UnicodeDecodeError as error:
        raise ConfigError(str(path), f"is not UTF-8 at byte {error.start}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(str(path), f"is not TOML: {error}") from None


def environ_layer(kind: type[Struct], environ: Mapping[str, str]) -> Layer:
    """Variables ``BROKER__POOL__MAX_PROCESSES``; a plain entry's name (``BROKER__CLI__ENV__HOME``) keeps its case."""
    layer: Layer = {}
    for name in sorted(environ):
        if name.startswith(ENV_PREFIX):
            keys = _spelled(kind, name.removeprefix(ENV_PREFIX).split("__"))
            _put(layer, keys, Text(environ[name], name))
    return layer


def flag_layer(flags: Mapping[str, object]) -> Layer:
    """Flags as ``{"server.listen": "..."}``; None means not given."""
    layer: Layer = {}
    for dotted, value in flags.items():
        if value is not None:
            _put(layer, dotted.split("."), Text(value, "a flag") if isinstance(value, str) else value)
    return layer


def merged(below: Layer, above: Layer) -> Layer:
    """Both layers in a new dict; where both have a key, tables are merged and everything else is ``above``'s."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def paths(layer: Layer, prefix: str = "") -> set[str]:
    """The dotted names of everything that is written in ``layer``, tables included."""
    found = set()
    for key, value in layer.items():
        found.add(prefix + key)
        if isinstance(value, dict):
            found |= paths(value, f"{prefix}{key}.")
    return found


def anchored(layer: Layer, dotted: str, folder: Path) -> Layer:
    """``layer`` with the relative path at ``dotted``, or a list of them, made absolute under ``folder``; anything else
    is left as it is."""
    head, _, rest = dotted.partition(".")
    value = layer.get(head)
    if rest:
        return {**layer, head: anchored(value, rest, folder)} if isinstance(value, dict) else layer
    if isinstance(value, list):
        return {**layer, head: [_below(folder, item) for item in value]}
    return {**layer, head: _below(folder, value)} if head in layer else layer


def _below(folder: Path, value: Any) -> Any:
    return os.path.normpath(folder / value) if isinstance(value, str) and value else value


def _spelled(kind: Any, parts: list[str]) -> list[str]:
    keys = []
    for part in parts:
        kind = _bare(kind)
        if get_origin(kind) is dict:
            kind = get_args(kind)[1]
            keys.append(part.lower() if _is_struct(_bare(kind)) else part)
            continue
        keys.append(part.lower())
        fields = {field.name: field.type for field in msgspec.structs.fields(kind)} if _is_struct(kind) else {}
        kind = fields.get(keys[-1])
    return keys


def _put(layer: Layer, keys: list[str], value: object) -> None:
    for depth, key in enumerate(keys[:-1], 1):
        layer = layer.setdefault(key, {})
        if not isinstance(layer, dict):
            raise ConfigError(".".join(keys[:depth]), "is given both as a whole and by key", "one of the two")
    layer[keys[-1]] = value


# -- the walk --------------------------------------------------------------------------------------------------------


def build(kind: type[S], raw: object, path: str = "") -> S:
    """Turn ``raw`` into a ``kind``.  Raises ``ConfigError`` naming the key, what was found, and what is allowed."""
    if not isinstance(raw, dict):
        raise ConfigError(path or "configuration", f"found {shown(raw)}", "a table")
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    for key in raw:
        if key not in fields:
            raise _unknown(path, key, list(fields))
    for name, field in fields.items():
        if name not in raw and field.default is NODEFAULT and field.default_factory is NODEFAULT:
            raise ConfigError(_join(path, name), "is missing", allowed(field.type))
    values = {fields[key].name: _value(fields[key].type, value, _join(path, key)) for key, value in raw.items()}
    try:
        return kind(**values)
    except ValueError as error:  # __post_init__ of a struct
        raise ConfigError(path or "configuration", str(error)) from None


def _value(kind: Any, raw: object, path: str) -> Any:
    bare = _bare(kind)
    if _is_struct(bare):
        return build(bare, raw, path)
    if get_origin(bare) in (list, dict) and isinstance(raw, Text):
        raw = _from_json(raw, kind, path)
    if get_origin(bare) is dict and isinstance(raw, dict):
        key_kind, value_kind = get_args(bare)
        return {_leaf(key_kind, k, _join(path, k)): _value(value_kind, v, _join(path, k)) for k, v in raw.items()}
    if get_origin(bare) is list and isinstance(raw, list):
        (item_kind,) = get_args(bare)
        raw = [_value(item_kind, item, f"{path}[{index}]") for index, item in enumerate(raw)]
        return raw if _is_struct(_bare(item_kind)) else _leaf(kind, raw, path)
    return _leaf(kind, raw, path)


def _leaf(kind: Any, raw: object, path: str) -> Any:
    lenient = isinstance(raw, Text)
    try:
        return msgspec.convert(str(raw) if lenient else raw, kind, strict=not lenient)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        found = "a value that is not shown" if _is_secret(kind) else shown(raw)
        raise ConfigError(path, f"found {found}{_origin(raw)}", allowed(kind)) from None


def _from_json(raw: Text, kind: Any, path: str) -> object:
    try:
        return msgspec.json.decode(raw.encode("utf-8", "surrogateescape"))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise ConfigError(path, f"is not JSON{_origin(raw)}", f"{allowed(kind)}, written as JSON") from None


def _unknown(path: str, key: str, known: list[str]) -> ConfigError:
    near = difflib.get_close_matches(key, known, 1)
    hint = f"unknown key, did you mean {near[0]}?" if near else "unknown key"
    return ConfigError(_join(path, key), hint, ", ".join(sorted(known)))


def _join(path: str, key: str) -> str:
    name = key if re.fullmatch(r"[A-Za-z0-9_-]{1,64}", key) else ascii(key[:64])
    return f"{path}.{name}" if path else name


def _origin(raw: object) -> str:
    return f" in {raw.source}" if isinstance(raw, Text) else ""


# -- types and words -------------------------------------------------------------------------------------------------


def _bare(kind: Any) -> Any:
    """``kind`` without its ``Annotated`` and without ``| None``."""
    if get_origin(kind) is Annotated:
        return _bare(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        rest = [arg for arg in get_args(kind) if arg is not type(None)]
        return _bare(rest[0]) if len(rest) == 1 else kind
    return kind


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Struct)


def _is_secret(kind: Any) -> bool:
    if get_origin(kind) is Annotated:
        return any(isinstance(note, Meta) and (note.extra or {}).get("secret") for note in get_args(kind)[1:])
    return False


_SHOWN_CHARS = 32


def shown(value: object) -> str:
    """A found value in words: numbers and short texts as they are, everything else by its type."""
    if isinstance(value, str):
        return ascii(str(value)) if len(value) <= _SHOWN_CHARS else f"a text of {len(value)} characters"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and abs(value) >= 10**_SHOWN_CHARS:
        return "a huge number"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, dict | list):
        return "a table" if isinstance(value, dict) else "a list"
    return f"a {type(value).__name__}"


def allowed(kind: Any) -> str:
    """What a type accepts, in words, from its JSON Schema."""
    return "a table" if get_origin(_bare(kind)) is dict else _words(msgspec.json.schema(kind))


_NOUNS = {"integer": "a whole number", "number": "a number", "boolean": "true or false", "string": "a text",
          "object": "a table", "null": "nothing"}  # fmt: skip
_BOUNDS = {"minimum": "from {}", "exclusiveMinimum": "above {}", "maximum": "up to {}",
           "minLength": "of at least {} characters", "maxLength": "of at most {} characters"}  # fmt: skip


def _words(schema: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_words(option) for option in schema["anyOf"] if option.get("type") != "null")
    if "enum" in schema:
        return "one of " + ", ".join(map(str, schema["enum"]))
    if schema.get("type") == "array":
        return f"a list, each item {_words(schema.get('items', {}))}"
    words = _NOUNS.get(schema.get("type", ""), "a table")
    words += "".join(" " + text.format(schema[key]) for key, text in _BOUNDS.items() if key in schema)
    if "examples" in schema:
        return f"{words} like {schema['examples'][0]}"
    return f"{words} matching {schema['pattern']}" if "pattern" in schema else words
