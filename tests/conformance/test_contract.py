"""The committed contracts: they are those of the pinned versions, the real CLI keeps them, and no drift goes unnoticed.

The recordings are those of ``test_conformance``.  What is an error: anything that the contract promises and that is
gone, weaker or of another type, and anything that it does not know.  What is new breaks no client, but somebody has to
look at it once.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tests.real_cli
from protocol.cli_frames import FRAME_TYPES, SYSTEM_SUBTYPES
from tests.conformance import contract
from tests.conformance.contract import (
    Contract,
    Difference,
    Key,
    Kind,
    Presence,
    committed,
    differences,
    merge,
    nearest,
    observe,
    parse,
    remember,
    render,
    told,
)
from tests.conformance.driver import Frame
from tests.conformance.recording import Recordings, Run, Spoken, record
from tests.conformance.situations import SITUATIONS
from tests.real_cli import VERSIONS
from tests.soak import size

PINS: Final = Path(tests.real_cli.__file__).parent
ADVICE: Final = "if this is how it shall be: run `make real-cli-contract` and read the difference (CONTRIBUTING.md)"
CONTRACTS: Final = committed()
KIND: Final = "result/success"
OTHER: Final = "system/init"
ANSWER: Final = "control_response/set_mood/success"

# -- what is committed -----------------------------------------------------------------------------------------------


def test_the_contracts_are_those_of_the_pinned_versions() -> None:
    """Every version that is installed for the tests has a contract, and no other version has one."""
    npm = json.loads((PINS / "package.json").read_text())["dependencies"]["@anthropic-ai/claude-code"]
    bundled = re.findall(r"bundles Claude Code ([0-9.]+[0-9])", (PINS / "requirements.txt").read_text())
    assert sorted(CONTRACTS) == sorted(VERSIONS) == sorted([npm, *bundled]), ADVICE


@pytest.mark.parametrize("version", CONTRACTS)
def test_every_situation_is_in_the_contract(version: str) -> None:
    """A situation that was added or removed since the contract was made is named."""
    changed = SITUATIONS.keys() ^ set(CONTRACTS[version].situations)
    assert not changed, f"added or removed since: {', '.join(sorted(changed))}; {ADVICE}"


@pytest.mark.parametrize("version", CONTRACTS)
def test_the_file_is_what_the_program_writes(version: str) -> None:
    """Nobody edited it: read and written again it is the same, byte by byte, and it holds names, never values."""
    text = contract.path_of(version).read_text()
    assert render(parse(text)) == text
    types = {name for kind in parse(text).kinds.values() for key in kind.keys.values() for name in key.types | key.rare}
    assert types <= {"string", "number", "bool", "null", "list", "object"}


@pytest.mark.parametrize("version", CONTRACTS)
def test_every_kind_of_frame_is_one_that_the_broker_knows(version: str) -> None:
    """The tables by which unknown frames are counted list every type and subtype that the real CLI was seen to send."""
    names = [name.removeprefix("subagent/").split("/") for name in CONTRACTS[version].kinds]
    assert {name[0] for name in names} <= FRAME_TYPES
    assert {name[1] for name in names if name[0] == "system"} <= SYSTEM_SUBTYPES


# -- planted drift ---------------------------------------------------------------------------------------------------

Keys = dict[str, Key]
Plant = Callable[[Keys], object]


def copied() -> Contract:
    """The newest contract, with an optional key and an answer to a control request that are sure to be there."""
    found = list(CONTRACTS.values())[-1]
    keys = {**found.kinds[KIND].keys, "seldom": string(Presence.OPTIONAL)}
    return found._replace(kinds={**found.kinds, KIND: Kind(keys), ANSWER: Kind({"type": string()})})


def drift(plant: Plant) -> list[str]:
    """What is told when the CLI's frames of one kind change like this."""
    found = copied()
    keys = dict(found.kinds[KIND].keys)
    plant(keys)
    return told(differences(found, found._replace(kinds={**found.kinds, KIND: Kind(keys)})))


def string(presence: Presence = Presence.REQUIRED) -> Key:
    return Key(presence, frozenset({"string"}))


PLANTED: Final[dict[str, tuple[Plant, str]]] = {
    "a key is gone": (lambda keys: keys.pop("session_id"), "- key session_id (string) is gone"),
    "an inner key is gone": (lambda keys: keys.pop("usage.input_tokens"), "- key usage.input_tokens (number) is gone"),
    "an optional key is gone": (lambda keys: keys.pop("seldom"), "- key seldom (string) is gone"),
    "a key is not always there": (
        lambda keys: keys.update(uuid=string(Presence.OPTIONAL)),
        "~ key uuid (string) is not always there any more",
    ),
    "a key has another type": (
        lambda keys: keys.update(is_error=string()),
        "~ key is_error was bool, is string",
    ),
    "a key may be null": (
        lambda keys: keys.update(result=Key(Presence.REQUIRED, frozenset({"string", "null"}))),
        "~ key result was string, is null or string",
    ),
    "a key is new": (lambda keys: keys.update(mood=string()), "+ key mood (string) is new"),
    "an inner key is new": (
        lambda keys: keys.update({"usage.mood": string(Presence.OPTIONAL)}),
        "+ key usage.mood (string) is new",
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_drift_is_told_by_name(name: str) -> None:
    """Each way in which the keys of a frame can change gives one line, which names the key and the kind of frame."""
    plant, sentence = PLANTED[name]
    assert drift(plant) == [f"{sentence}: {KIND}"]


def test_a_kind_of_frame_that_is_gone_or_new_is_told_by_name() -> None:
    """So does a kind of frame that comes or goes; an answer to a control request is such a kind, too."""
    found = copied()
    without = {name: kind for name, kind in found.kinds.items() if name != ANSWER}
    extra = {**without, "system/mood": Kind({"type": string()})}
    assert told(differences(found, found._replace(kinds=extra))) == [
        f"- no such frame any more: {ANSWER}",
        "+ a new kind of frame: system/mood",
    ]


def test_the_same_change_in_many_kinds_is_one_line() -> None:
    """A key that appears everywhere is told once, with all the kinds."""
    found = copied()
    changed = {name: Kind({**found.kinds[name].keys, "mood": string()}) for name in (KIND, OTHER)}
    assert told(differences(found, found._replace(kinds=found.kinds | changed))) == [
        f"+ key mood (string) is new: {KIND}, {OTHER}"
    ]


def test_an_object_is_told_without_what_is_in_it() -> None:
    """An object that goes or comes is one line, not one for every key inside."""

    def replace(keys: Keys) -> None:
        for path in [path for path in keys if path == "usage" or path.startswith("usage.")]:
            keys[f"new_{path}"] = keys.pop(path)

    assert drift(replace) == [f"- key usage (object) is gone: {KIND}", f"+ key new_usage (object) is new: {KIND}"]


# -- what is no drift ------------------------------------------------------------------------------------------------

ID: Final = "5d6c0f5e-8a3f-4b57-9a0c-0d8f6b8a3f11"


def seen(*frames: Frame) -> Contract:
    """One recording of one process that said this."""
    return observe("9.9.9", [Run("s", "9.9.9", [Spoken(list(frames), 0)], {}, [], None, 0.0)])


def test_what_is_seen_only_sometimes_may_be_missing_and_may_come() -> None:
    """A frame, a key or a type that not every recording has is marked, and neither its coming nor its going is told."""
    much = seen({"type": "a", "k": 1, "n": None, "deep": {"x": 1}}, {"type": "b"})
    little = seen({"type": "a", "n": "text"})
    known = merge([much, little, much])
    assert known.kinds["b"].is_sometimes
    assert known.kinds["a"].keys["deep.x"].presence is Presence.SOMETIMES
    assert known.kinds["a"].keys["n"].words == "sometimes null or sometimes string"
    assert parse(render(known)) == known
    for one in (much, little):
        assert list(differences(known, one)) == []
    assert told(differences(known, seen({"type": "a", "n": 1}))) == [
        "~ key n was sometimes null or sometimes string, is number: a"
    ]


def test_presence_is_judged_where_the_object_is() -> None:
    """A key of an object that is only sometimes there is required if every such object has it; an empty list proves
    nothing about what its elements have."""
    known = seen({"type": "a", "deep": {"x": 1}, "list": [{"y": 1}]}, {"type": "a", "list": []})
    presences = {path: key.presence.value for path, key in known.kinds["a"].keys.items()}
    assert presences == {
        "type": "required", "deep": "optional", "deep.x": "required", "list": "required", "list[]": "required",
        "list[].y": "required",
    }  # fmt: skip


def test_values_leave_no_trace() -> None:
    """Other ids, texts and counts, and other names of models, give the same contract."""
    one = {"type": "result", "subtype": "success", "uuid": ID, "modelUsage": {"claude-a": {"costUSD": 1}}, "t": ""}
    other = {"type": "result", "subtype": "success", "uuid": "u-2", "modelUsage": {"b": {"costUSD": 0.5}}, "t": "x"}
    assert render(seen(one)) == render(seen(other))


def test_what_varied_once_is_remembered() -> None:
    """Written again after recordings in which nothing varied, the file is the same; what is really gone is dropped."""
    much, little = seen({"type": "a", "k": 1, "n": None}, {"type": "b"}), seen({"type": "a", "n": ""})
    known = merge([much, little])
    for again in ([much, much], [little, little], [little, much]):
        assert render(remember(merge(again), known)) == render(known)
    changed = remember(seen({"type": "c", "m": 1}), known)
    assert sorted(changed.kinds) == ["b", "c"]


FRAMES = st.dictionaries(
    st.sampled_from("klm"),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=2),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("xy"), inner, max_size=2),
        max_leaves=6,
    ),
    max_size=3,
).flatmap(lambda body: st.sampled_from(["a", "b"]).map(lambda name: {**body, "type": name}))
RECORDINGS = st.lists(st.lists(FRAMES, max_size=4).map(lambda frames: seen(*frames)), min_size=1, max_size=4)


@settings(max_examples=size(20, 40))
@given(RECORDINGS)
def test_a_contract_is_kept_by_every_recording_that_it_was_made_of(recordings_: list[Contract]) -> None:
    """Whatever was recorded, each recording keeps the contract of all, and the file says the whole of it."""
    known = merge(recordings_)
    assert parse(render(known)) == known
    for one in recordings_:
        assert list(differences(known, one)) == []


@settings(max_examples=size(20, 40))
@given(RECORDINGS, RECORDINGS)
def test_writing_again_settles(first: list[Contract], second: list[Contract]) -> None:
    """Once all that varies was seen, recordings that break nothing give the same bytes: the file changes no more."""
    known = merge([*first, *second])
    for again in (first, second, [*first, *second]):
        if not list(differences(known, merge(again))):
            assert render(remember(merge(again), known)) == render(known)


def test_the_nearest_contract_is_the_one_before() -> None:
    """A version without a contract is laid beside the newest one that is older, else beside any."""
    contracts = {name: Contract(name, (), {}) for name in ("2.1.99", "2.1.197", "2.2.0")}
    assert [nearest(name, contracts).version for name in ("2.1.197", "2.1.329", "3.0", "1.0")] == [  # type: ignore[union-attr]
        "2.1.197", "2.1.197", "2.2.0", "2.1.99",
    ]  # fmt: skip
    assert nearest("1.0", {}) is None


# -- the real CLI: last, since the recording takes a while and may be another worker's -------------------------------


def listed(broken: set[Difference]) -> str:
    return "\n".join([*(f"    {line}" for line in told(broken)), ADVICE])


@pytest.mark.real_cli
@pytest.mark.slow
@pytest.mark.full
@pytest.mark.timeout(600)  # it may have to wait for the whole recording, and to make another one
@pytest.mark.parametrize("version", VERSIONS)
def test_the_real_cli_keeps_its_contract(recordings: Recordings, version: str) -> None:
    """Each version sends the frames, keys and types of its contract and no others; a version without one is laid
    beside the nearest one."""
    runs = [run for (_, subject), run in recordings.runs.items() if subject == version]
    assert not [f"{run.situation}: {run.failure}" for run in runs if run.failure]
    assert contract.reported_versions(runs) == {version}
    measure = nearest(version, CONTRACTS)
    assert measure is not None, f"there is no contract at all: {ADVICE}"
    found = observe(version, runs)
    broken = set(differences(measure, found))
    if broken and (measure.version, measure.situations) == (found.version, found.situations):
        # What depends on timing is not there in a second recording; where the material is another, there is no doubt.
        again = record([version]).runs.values()
        broken &= set(differences(measure, observe(version, again)))
    if broken:
        pytest.fail(f"{version} is not as the contract of {measure.version} says:\n{listed(broken)}", pytrace=False)
