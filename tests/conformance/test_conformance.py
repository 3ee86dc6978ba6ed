"""The simulator beside two real versions of the CLI, in every situation of ``situations``.

The real CLI runs offline against ``simulator.messages_api``.  What is compared, and how strictly, stands in
``comparison``; what may differ, and why, in ``differences``.
"""

import copy
from typing import Any, Final

import pytest

from tests.conformance.comparison import Pool, Words, compare, compare_runs, pool, required_keys, version_differences
from tests.conformance.differences import FOLLOWS_NEWER, OPTIONAL, RACING
from tests.conformance.driver import Frame
from tests.conformance.recording import SIMULATOR, Recordings, Run, Spoken
from tests.conformance.shapes import HOOK_INPUT
from tests.conformance.situations import SITUATIONS, situations_ends, situations_turns
from tests.conformance.stage import BAD_TOKEN, TOKEN
from tests.real_cli import VERSIONS

# The first test that asks waits for the whole recording: a minute or two, more beside other tests.
pytestmark = [pytest.mark.real_cli, pytest.mark.slow, pytest.mark.timeout(600)]
OLDER, NEWER = VERSIONS
REAL: Final = VERSIONS
QUICK: Final = [module.__name__ for module in (situations_ends, situations_turns)]
NAMES: Final = [
    name if play.__module__ in QUICK else pytest.param(name, marks=pytest.mark.full)
    for name, play in SITUATIONS.items()
]
"""Turns and their ends always, the rest with ``make test-full``."""


@pytest.fixture(scope="module")
def known(recordings: Recordings) -> Pool:
    return pool(run for (_, subject), run in recordings.runs.items() if subject != SIMULATOR)


def runs(recordings: Recordings, situation: str) -> tuple[Run, Run, Run]:
    ours, older, newer = (recordings.runs[situation, subject] for subject in (SIMULATOR, OLDER, NEWER))
    return ours, older, newer


def words(recordings: Recordings, situation: str) -> list[tuple[Words, Words, Words]]:
    """(simulator, older, newer) of each process of the situation."""
    spoken = zip(*(run.processes for run in runs(recordings, situation)), strict=True)
    return [(Words(ours), Words(older), Words(newer)) for ours, older, newer in spoken]


@pytest.mark.parametrize("situation", NAMES)
def test_the_simulator_speaks_as_the_real_cli_does(recordings: Recordings, known: Pool, situation: str) -> None:
    """In every situation the simulator sends the same frames, keys and values in the same order, and ends alike."""
    wrong = compare_runs(*runs(recordings, situation), known)
    assert not wrong, "\n".join([situation, *wrong])


@pytest.mark.parametrize("situation", NAMES)
def test_no_frame_of_the_simulator_can_be_missing(recordings: Recordings, known: Pool, situation: str) -> None:
    """Leaving out any one frame that the simulator sent, or all frames of one kind, makes the comparison complain."""
    for ours, older, newer in words(recordings, situation):
        for index, frame in enumerate(ours.frames):
            if index == open_end(ours):
                continue
            assert compare(ours.without({index}), older, newer, known), f"nobody misses frame {index}: {frame}"
        for kind in ours.by_kind:
            indices = {index for index, shape in enumerate(ours.shapes) if shape.kind == kind}
            assert compare(ours.without(indices), older, newer, known), f"nobody misses {kind}"


@pytest.mark.full
def test_no_required_key_of_the_simulator_can_be_missing(recordings: Recordings, known: Pool) -> None:
    """Leaving out any one key that both real versions always send makes the comparison complain."""
    tried: set[tuple[str, str]] = set()
    for situation in SITUATIONS:
        for ours, older, newer in words(recordings, situation):
            for kind, shapes in ours.by_kind.items():
                present = frozenset.union(*(shape.keys for shape in shapes))
                for path in sorted((required_keys(kind, older, newer) & present) - {p for k, p in tried if k == kind}):
                    tried.add((kind, path))
                    frames = [without(frame, path, kind, ours, n) for n, frame in enumerate(ours.frames)]
                    spoken = Words(Spoken(frames, ours.code))
                    assert compare(spoken, older, newer, known), f"nobody misses {path} of {kind}"
    assert len(tried) > 500


def test_a_frame_or_key_that_was_never_sent_is_noticed(recordings: Recordings, known: Pool) -> None:
    """A frame of an unknown kind, an unknown key and a value of another type make the comparison complain."""
    ((ours, older, newer),) = words(recordings, "thinking")
    for extra in ({"type": "no_such_type"}, {"type": "system", "subtype": "no_such_subtype"}):
        assert compare(Words(Spoken([*ours.frames, extra], ours.code)), older, newer, known)
    for change in ({"no_such_key": 1}, {"session_id": 7}, {"is_error": None}):
        frames = [{**frame, **change} if frame["type"] == "result" else frame for frame in ours.frames]
        assert compare(Words(Spoken(frames, ours.code)), older, newer, known), change


@pytest.mark.full
def test_the_differences_of_the_two_versions_are_known(recordings: Recordings) -> None:
    """What the two real versions do differently is exactly what the list says, so the list explains all of it."""
    found: dict[str, str] = {}
    for situation in SITUATIONS:
        _, older, newer = runs(recordings, situation)
        found |= dict.fromkeys(version_differences(older, newer), situation)
    assert found.keys() == FOLLOWS_NEWER.keys()


@pytest.mark.full
def test_every_excuse_is_needed(recordings: Recordings) -> None:
    """A kind of frame stands on a list of excuses only while the newer version sends it."""
    sent = {kind for name in SITUATIONS for _, _, newer in words(recordings, name) for kind in newer.by_kind}
    assert OPTIONAL.keys() | RACING.keys() <= sent


@pytest.mark.parametrize("version", REAL)
def test_what_was_bound_late_is_what_the_api_saw(recordings: Recordings, version: str) -> None:
    """The real CLI's request carries the credential, the system prompt and the model of the burst."""
    (request,) = posts(recordings.runs["late_bind", version])
    assert (request["credential_kind"], request["credential"]) == ("oauth", TOKEN)
    assert "You are a pirate." in request["system"]
    assert "haiku" in request["model"]


@pytest.mark.parametrize("version", REAL)
def test_only_the_first_initialize_counts(recordings: Recordings, version: str) -> None:
    """The system prompt of a second ``initialize`` never reaches the API."""
    (request,) = posts(recordings.runs["second_initialize", version])
    assert "You are the first." in request["system"]
    assert "You are the second." not in request["system"]


@pytest.mark.parametrize("version", REAL)
def test_a_new_token_replaces_a_refused_one(recordings: Recordings, version: str) -> None:
    """After a 401 a new credential in the same process pays for the next turn."""
    tokens = [request["credential"] for request in posts(recordings.runs["unauthorized", version])]
    assert set(tokens[:-1]) == {BAD_TOKEN}
    assert tokens[-1] == TOKEN


def open_end(ours: Words) -> int | None:
    """The last delta of a reply that broke off without saying how far it had come: one less is just as right."""
    kinds = [shape.kind for shape in ours.shapes]
    if "assistant/text" in kinds or "stream_event/content_block_delta/text_delta" not in kinds:
        return None
    return len(kinds) - 1 - kinds[::-1].index("stream_event/content_block_delta/text_delta")


def posts(run: Run) -> list[dict[str, Any]]:
    """The turns' requests; a model's validation (one token) is none."""
    return [request for request in run.requests if request["method"] == "POST" and request["stream"]]


def without(frame: Frame, path: str, kind: str, ours: Words, index: int) -> Frame:
    """``frame`` without the key at ``path``, if it is of the kind."""
    if ours.shapes[index].kind != kind:
        return frame
    changed = copy.deepcopy(frame)
    _remove(changed, path.replace(HOOK_INPUT, "request.input").split("."))
    return changed


def _remove(value: Any, steps: list[str]) -> None:
    step, *rest = steps
    name, depth = step.replace("[]", ""), step.count("[]")
    if not isinstance(value, dict) or (name != "*" and name not in value):
        return
    if not rest:
        for key in list(value) if name == "*" else [name]:
            del value[key]
        return
    for below in value.values() if name == "*" else [value[name]]:
        for element in _elements(below, depth):
            _remove(element, rest)


def _elements(value: Any, depth: int) -> list[Any]:
    """What lies ``depth`` lists deep."""
    if not depth or not isinstance(value, list):
        return [value]
    return [element for inner in value for element in _elements(inner, depth - 1)]
