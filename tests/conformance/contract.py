"""What one version of the CLI was seen to send: kinds of frames, their keys, the JSON types of these.  Never a value.

A contract is what several recordings of all situations have in common, written as a file that reads well in a
comparison: sorted, one line per key.  Kinds and paths are those of ``shapes``; the answer to a control request is the
kind ``control_response/SUBTYPE/success`` or ``.../error``.

Not everything shows in every recording: some of it depends on timing.  So each key has a ``Presence``, a kind of frame
may be marked as seen only sometimes, and what was once seen to vary is remembered when the file is written again.

Pure, but for ``committed``.  Callers: ``write_contract``, ``test_contract``.
"""

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, NamedTuple

from tests.conformance.recording import Run
from tests.conformance.shapes import Shape, shape
from tests.conformance.shapes import kind as kind_of

FOLDER: Final = Path(__file__).resolve().parent / "contracts"
ABOUT: Final = (
    "Made by `make real-cli-contract`, never by hand. A key is required if it is wherever the object is that holds it"
    " (an element: wherever its list is not empty), optional if some frames of every recording have it; what is marked"
    " sometimes was not in every recording."
)
_SOMETIMES: Final = "sometimes "
_OR: Final = " or "


class Presence(StrEnum):
    """How reliably a key is there; the later one is the weaker promise."""

    REQUIRED = "required"
    OPTIONAL = "optional"
    SOMETIMES = "sometimes"


_WEAKER: Final = list(Presence).index


class Key(NamedTuple):
    """One path inside the frames of a kind.  ``rare`` are the types that not every recording has."""

    presence: Presence
    types: frozenset[str]
    rare: frozenset[str] = frozenset()

    @property
    def words(self) -> str:
        """``string or sometimes null``."""
        return _OR.join([*sorted(self.types), *(f"{_SOMETIMES}{name}" for name in sorted(self.rare))])


class Kind(NamedTuple):
    """The frames of one kind."""

    keys: dict[str, Key]
    is_sometimes: bool = False


class Contract(NamedTuple):
    """One version, the situations it was put through, and its frames by kind."""

    version: str
    situations: tuple[str, ...]
    kinds: dict[str, Kind]


class Difference(NamedTuple):
    """One thing that is not as it was, told without the kind of frame, so that equal ones can be told together."""

    what: str
    kind: str


# -- making ----------------------------------------------------------------------------------------------------------


def observe(version: str, runs: Iterable[Run]) -> Contract:
    """What one recording shows.  Nothing in it is marked ``sometimes``."""
    shapes: dict[str, list[Shape]] = defaultdict(list)
    situations = set()
    for run in runs:
        situations.add(run.situation)
        for one in (shape(frame) for spoken in run.processes for frame in spoken.frames):
            shapes[one.kind].append(one)
    return Contract(version, tuple(sorted(situations)), {kind: _observe(found) for kind, found in shapes.items()})


def _observe(shapes: Sequence[Shape]) -> Kind:
    types: dict[str, set[str]] = defaultdict(set)
    missed: set[str] = set()
    for one in shapes:
        for path, name in one.types:
            types[path].add(name)
    for one in shapes:
        holders = {"", *(path for path, _ in one.types)}
        missed |= {path for path in types.keys() - one.keys if path.rpartition(".")[0] in holders}
    keys = {}
    for path, names in types.items():
        is_required = path not in missed or path.endswith(("[]", ".*"))
        keys[path] = Key(Presence.REQUIRED if is_required else Presence.OPTIONAL, frozenset(names))
    return Kind(keys)


def reported_versions(runs: Iterable[Run]) -> set[str]:
    """What the processes said they are."""
    frames = [frame for run in runs for spoken in run.processes for frame in spoken.frames]
    answers = [frame["response"] for frame in frames if kind_of(frame) == "control_response/get_binary_version/success"]
    return {str(answer["response"]["version"]) for answer in answers}


def merge(observed: Sequence[Contract]) -> Contract:
    """What several recordings of the same situations have in common, and what only some of them have."""
    names = set().union(*(one.kinds for one in observed))
    kinds = {}
    for name in names:
        found = [one.kinds[name] for one in observed if name in one.kinds]
        paths = set().union(*(kind.keys for kind in found))
        keys = {path: _merge([kind.keys[path] for kind in found if path in kind.keys], len(found)) for path in paths}
        kinds[name] = Kind(keys, len(found) < len(observed))
    return observed[0]._replace(kinds=kinds)


def _merge(found: Sequence[Key], count: int) -> Key:
    types = frozenset.intersection(*(key.types for key in found))
    rare = frozenset().union(*(key.types for key in found)) - types
    presence = max((key.presence for key in found), key=_WEAKER)
    return Key(presence if len(found) == count else Presence.SOMETIMES, types, rare)


def remember(new: Contract, old: Contract) -> Contract:
    """``new`` with what ``old`` had already seen to vary, so that writing twice gives the same file.

    What ``old`` promised and ``new`` does not show at all is gone; what ``new`` adds stays.
    """
    kinds = dict(new.kinds)
    for name, before in old.kinds.items():
        if name not in kinds:
            if before.is_sometimes:
                kinds[name] = before
            continue
        keys = dict(kinds[name].keys)
        for path, key in before.keys.items():
            if path in keys:
                keys[path] = _remember(keys[path], key)
            elif key.presence is Presence.SOMETIMES:
                keys[path] = key
        kinds[name] = Kind(keys, kinds[name].is_sometimes or before.is_sometimes)
    return new._replace(kinds=kinds)


def _remember(new: Key, old: Key) -> Key:
    return Key(max(new.presence, old.presence, key=_WEAKER), new.types - old.rare, new.rare | old.rare)


# -- comparing -------------------------------------------------------------------------------------------------------


def differences(old: Contract, new: Contract) -> Iterator[Difference]:
    """Everything in ``new`` (a contract, or one recording) that breaks ``old`` or is unknown to it.

    No difference: what ``old`` has seen only sometimes and ``new`` does not show, and an optional key that every frame
    happens to have.
    """
    for name, kind in old.kinds.items():
        if name in new.kinds:
            yield from (Difference(what, name) for what in _compare(kind.keys, new.kinds[name].keys))
        elif not kind.is_sometimes:
            yield Difference("- no such frame any more", name)
    for name in new.kinds.keys() - old.kinds.keys():
        yield Difference("+ a new kind of frame", name)


def _compare(old: dict[str, Key], new: dict[str, Key]) -> Iterator[str]:
    gone = {path for path, key in old.items() if path not in new and key.presence is not Presence.SOMETIMES}
    for path in _topmost(gone):
        yield f"- key {path} ({old[path].words}) is gone"
    for path in _topmost(new.keys() - old.keys()):
        yield f"+ key {path} ({new[path].words}) is new"
    for path in old.keys() & new.keys():
        before, after = old[path], new[path]
        if before.presence is Presence.REQUIRED and after.presence is not Presence.REQUIRED:
            yield f"~ key {path} ({before.words}) is not always there any more"
        seen = after.types | after.rare
        if not before.types <= seen or not seen <= before.types | before.rare:
            yield f"~ key {path} was {before.words}, is {after.words}"


def _topmost(paths: Collection[str]) -> Iterator[str]:
    """Without those that lie inside another one: an object that is gone takes its keys along."""
    for path in paths:
        if not any(path.startswith((f"{other}.", f"{other}[]")) for other in paths):
            yield path


def told(found: Iterable[Difference]) -> list[str]:
    """One line for each thing, with all kinds of frames that it holds for: first what is gone, then what is new."""
    kinds: dict[str, set[str]] = defaultdict(set)
    for what, kind in found:
        kinds[what].add(kind)
    order = sorted(kinds, key=lambda what: ("-~+".index(what[0]), what))
    return [f"{what}: {', '.join(sorted(kinds[what]))}" for what in order]


# -- the file --------------------------------------------------------------------------------------------------------


def render(contract: Contract) -> str:
    """The file's text: the same for the same contract, byte by byte."""
    kinds: dict[str, Any] = {}
    for name, kind in contract.kinds.items():
        groups: dict[str, Any] = defaultdict(dict)
        for path, key in kind.keys.items():
            groups[key.presence.value][path] = key.words
        kinds[name] = {**groups, **({"seen": "sometimes"} if kind.is_sometimes else {})}
    whole = {"about": ABOUT, "cli": contract.version, "kinds": kinds, "situations": list(contract.situations)}
    return json.dumps(whole, indent=1, sort_keys=True) + "\n"


def parse(text: str) -> Contract:
    """The contract in a file's text; raises ``ValueError`` or ``KeyError`` for what ``render`` never wrote."""
    whole = json.loads(text)
    kinds = {}
    for name, groups in whole["kinds"].items():
        is_sometimes = groups.pop("seen", None) == "sometimes"
        keys = {
            path: _key(Presence(presence), words) for presence, group in groups.items() for path, words in group.items()
        }
        kinds[name] = Kind(keys, is_sometimes)
    return Contract(whole["cli"], tuple(whole["situations"]), kinds)


def _key(presence: Presence, words: str) -> Key:
    names = words.split(_OR)
    rare = frozenset(name.removeprefix(_SOMETIMES) for name in names if name.startswith(_SOMETIMES))
    return Key(presence, frozenset(name for name in names if not name.startswith(_SOMETIMES)), rare)


def path_of(version: str) -> Path:
    """Where the contract of a version is written."""
    return FOLDER / f"{version}.json"


def committed() -> dict[str, Contract]:
    """Version -> contract, of every file that is there; oldest version first."""
    found = [parse(path.read_text()) for path in FOLDER.glob("*.json")]
    return {one.version: one for one in sorted(found, key=lambda one: _order(one.version))}


def nearest(version: str, contracts: dict[str, Contract]) -> Contract | None:
    """The contract of ``version``, or the one to lay beside it while it has none: the newest before it, or any."""
    earlier = [one for name, one in contracts.items() if _order(name) < _order(version)]
    return contracts.get(version) or next(iter([*earlier[::-1], *contracts.values()]), None)


def _order(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
