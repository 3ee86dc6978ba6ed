"""Does the simulator speak as the real CLI does?  Compares recorded runs of one situation and lists what is wrong.

The measure is the newer real version; the older one tells what may be relied on:
* order: the frames of the main line (init -> stream_event -> assistant -> user -> result) are the same, in the same
  order, runs of equal deltas taken as one; so are the frames beside it, each within its turn;
* keys: a key that all frames of a kind have in both real versions is there; none is there, and no type, that neither
  version ever sent;
* values: where both versions agree on a value that is no id, time, text or count, it is the simulator's, too; values
  that tell how something ended are always those of the newer version;
* deltas: what was streamed is what the ``assistant`` frame says, so that not one delta may be missing;
* facts and exit codes are equal.

Pure.  Callers: ``test_conformance``, ``test_comparison``.
"""

import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from tests.conformance.differences import OPTIONAL, RACING
from tests.conformance.driver import Frame
from tests.conformance.recording import Run, Spoken
from tests.conformance.shapes import Shape, shape

_MAIN: Final = frozenset({"stream_event", "assistant", "user", "result"})
_COUNTED: Final = re.compile(r"(?:[a-z]+[0-9]+ )+")
_NUMBER: Final = re.compile(r"[0-9]+")
_INIT: Final = "system/init"
_TOOL_RESULT: Final = "user/tool_result"
_STREAM_ENDS: Final = frozenset(
    f"stream_event/{part}" for part in ("content_block_stop", "message_delta", "message_stop")
)
_ENDINGS: Final = frozenset(
    {"state", "subtype", "terminal_reason", "message.stop_reason", "stop_reason", "is_error", "aborted", "isReplay"}
)
"""Paths of values that are compared with the newer version even where the older one differs."""

Pool = Mapping[str, frozenset[tuple[str, str]]]
"""Kind -> every (path, type) that a real version ever sent in a frame of it."""


class Words:
    """What one process said, normalised once and compared often."""

    def __init__(self, spoken: Spoken, shapes: list[Shape] | None = None) -> None:
        self.frames = spoken.frames
        self.code = spoken.code
        self.shapes = [shape(frame) for frame in spoken.frames] if shapes is None else shapes
        self.by_kind: dict[str, list[Shape]] = defaultdict(list)
        for one in self.shapes:
            self.by_kind[one.kind].append(one)

    def without(self, indices: Collection[int]) -> "Words":
        """The same words without some frames: for proving that they would be missed."""
        kept = [index for index in range(len(self.frames)) if index not in indices]
        spoken = Spoken([self.frames[index] for index in kept], self.code)
        return Words(spoken, [self.shapes[index] for index in kept])


def pool(runs: Iterable[Run]) -> Pool:
    """What the real versions ever sent, over all situations."""
    found: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for run in runs:
        for spoken in run.processes:
            for frame in spoken.frames:
                one = shape(frame)
                found[one.kind] |= one.types
    return {kind: frozenset(types) for kind, types in found.items()}


def compare_runs(simulated: Run, older: Run, newer: Run, known: Pool) -> list[str]:
    """Everything that is wrong with the simulator in one situation, one sentence each."""
    wrong = [f"{run.subject} could not be played: {run.failure}" for run in (simulated, older, newer) if run.failure]
    if wrong:
        return wrong
    wrong += _compare_facts(simulated, older, newer)
    words = [[Words(spoken) for spoken in run.processes] for run in (simulated, older, newer)]
    for number, (ours, theirs, measure) in enumerate(zip(*words, strict=True), 1):
        wrong += [f"process {number}: {line}" for line in compare(ours, theirs, measure, known)]
    return wrong


def compare(ours: Words, older: Words, newer: Words, known: Pool) -> list[str]:
    """The same for one process."""
    return [
        *_compare_order("main line", main_line(newer.shapes), main_line(ours.shapes)),
        *_compare_order("beside it", asides(newer.shapes), asides(ours.shapes)),
        *_compare_racing(newer.shapes, ours.shapes),
        *_compare_keys(ours, older, newer),
        *_compare_pool(ours, known),
        *_compare_values(ours, older, newer),
        *incoherent(ours.frames),
        *([f"exit code {ours.code}, the real one's is {newer.code}"] if ours.code != newer.code else []),
    ]


def main_line(shapes: Sequence[Shape]) -> list[str]:
    """The kinds of the main line in order; deltas that follow each other count once.

    A tool's result counts behind the end of the message that called it: a tool that needs no time answers while the
    rest of the API's stream is still being read, now before and now behind one of its last events.
    """
    found: list[str] = []
    early: list[str] = []
    for one in shapes:
        if not _is_main(one.kind) or (found and found[-1] == one.kind and "content_block_delta" in one.kind):
            continue
        if one.kind == _TOOL_RESULT:
            early.append(one.kind)
            continue
        if early and one.kind not in _STREAM_ENDS:
            found += early
            early = []
        found.append(one.kind)
    return found + early


def asides(shapes: Sequence[Shape]) -> list[str]:
    """The other kinds in order, each with the number of turns begun and ended before it: ``system/status @1.0``."""
    begun = ended = 0
    found = []
    for one in shapes:
        begun += one.kind == _INIT
        ended += one.kind.startswith("result/")
        if not _is_main(one.kind) and one.kind not in OPTIONAL and one.kind not in RACING:
            found.append(f"{one.kind} @{begun}.{ended}")
    return found


def incoherent(frames: Iterable[Frame]) -> Iterator[str]:
    """Blocks that were streamed otherwise than the ``assistant`` frame says, and counted tokens with a gap."""
    streamed: dict[str, str] = defaultdict(str)
    for frame in frames:
        event = frame.get("event", {})
        if frame.get("parent_tool_use_id"):
            continue  # a subagent's words are never streamed
        if event.get("type") == "content_block_start":
            streamed.clear()
        for name, text in event.get("delta", {}).items():
            if name in ("text", "thinking", "partial_json"):
                streamed[name] += text
                yield from _miscounted(streamed["text"])
        # A synthetic one (an API error, told as an assistant) was never streamed.
        message = frame.get("message", {})
        if frame.get("type") == "assistant" and streamed and message.get("model") != "<synthetic>":
            for block in message.get("content", ()):
                yield from _differs(block, streamed)


def _miscounted(text: str) -> Iterator[str]:
    """The stand-ins' replies count their tokens, ``hello0 hello1 ``: a gap is a lost delta."""
    if _COUNTED.fullmatch(text) and [int(number) for number in _NUMBER.findall(text)] != list(range(text.count(" "))):
        yield f"a delta is missing in {text!r}"


def _differs(block: Frame, streamed: Mapping[str, str]) -> Iterator[str]:
    for name in ("text", "thinking"):
        if name in block and block[name] != streamed[name]:
            yield f"{name} {block[name]!r} was streamed as {streamed[name]!r}"
    if "input" in block and json.dumps(block["input"]) != _rewritten(streamed["partial_json"]):
        yield f"tool input {block['input']!r} was streamed as {streamed['partial_json']!r}"


def _rewritten(text: str) -> str | None:
    try:
        return json.dumps(json.loads(text))
    except ValueError:
        return None


def _is_main(kind: str) -> bool:
    # A user message that is repeated is none of the turn's own frames.
    return kind == _INIT or (kind.partition("/")[0] in _MAIN and kind != "user/string")


def _compare_order(where: str, expected: list[str], found: list[str]) -> Iterator[str]:
    if expected == found:
        return
    same = 0
    while same < min(len(expected), len(found)) and expected[same] == found[same]:
        same += 1
    wanted = expected[same] if same < len(expected) else "nothing"
    got = found[same] if same < len(found) else "nothing"
    before = found[same - 1] if same else "the start"
    yield f"{where}: after {before} (frame {same}) comes {got}, the real one says {wanted}"


def _compare_racing(expected: Sequence[Shape], found: Sequence[Shape]) -> Iterator[str]:
    for kind in sorted(RACING):
        wanted, got = (sum(one.kind == kind for one in shapes) for shapes in (expected, found))
        if wanted != got:
            yield f"{kind}: {got} of them, the real one sends {wanted}"
    for kind in sorted({one.kind for one in found} & OPTIONAL.keys()):
        yield f"{kind} is on the list of what the simulator does not send, but it sends it"


def _compare_keys(ours: Words, older: Words, newer: Words) -> Iterator[str]:
    for kind, shapes in ours.by_kind.items():
        required = required_keys(kind, older, newer)
        for one in shapes:
            for path in sorted(required - one.keys):
                yield f"{kind}: the key {path} is missing"


def required_keys(kind: str, older: Words, newer: Words) -> frozenset[str]:
    """What every frame of the kind has in both versions, or in the newer one if only that one sends the kind."""
    shapes = [*older.by_kind.get(kind, ()), *newer.by_kind.get(kind, ())]
    return frozenset.intersection(*(one.keys for one in shapes)) if shapes else frozenset()


def _compare_pool(ours: Words, known: Pool) -> Iterator[str]:
    for kind, shapes in ours.by_kind.items():
        seen = frozenset().union(*(one.types for one in shapes))
        if kind not in known:
            yield f"{kind}: neither real version ever sends that"
            continue
        for path, name in sorted(seen - known[kind]):
            yield f"{kind}: {path} is a {name}, which no real version ever sends"


def _compare_values(ours: Words, older: Words, newer: Words) -> Iterator[str]:
    for kind in ours.by_kind:
        mine, old, new = (_values(words.by_kind.get(kind, ())) for words in (ours, older, newer))
        for path in sorted(mine.keys() & new.keys()):
            agreed = path in _ENDINGS or kind not in older.by_kind or old.get(path) == new[path]
            if agreed and mine[path] != new[path]:
                yield f"{kind}: {path} is {_listed(mine[path])}, the real one says {_listed(new[path])}"


def _values(shapes: Iterable[Shape]) -> dict[str, set[Any]]:
    found: dict[str, set[Any]] = defaultdict(set)
    for one in shapes:
        for path, value in one.values:
            found[path].add(value)
    return found


def _listed(values: set[Any]) -> str:
    return ", ".join(sorted(json.dumps(value) for value in values))


def _compare_facts(simulated: Run, older: Run, newer: Run) -> Iterator[str]:
    for name in sorted(simulated.facts.keys() | newer.facts.keys()):
        ours, theirs, measure = (run.facts.get(name) for run in (simulated, older, newer))
        if ours != measure:
            yield f"fact {name}: {ours!r}, the real one's is {measure!r} (older version: {theirs!r})"
    counts = [len(run.processes) for run in (simulated, older, newer)]
    if len(set(counts)) > 1:
        yield f"numbers of processes differ: {counts}"


def version_differences(older: Run, newer: Run) -> set[str]:
    """What the two real versions do differently in one situation, as keys of ``differences.FOLLOWS_NEWER``."""
    found: set[str] = set()
    for one, other in zip(older.processes, newer.processes, strict=True):
        old, new = Words(one), Words(other)
        found |= {f"- {kind}" for kind in old.by_kind.keys() - new.by_kind.keys()}
        found |= {f"+ {kind}" for kind in new.by_kind.keys() - old.by_kind.keys()}
        for kind in old.by_kind.keys() & new.by_kind.keys():
            before, after = _values(old.by_kind[kind]), _values(new.by_kind[kind])
            changed = [path for path in _ENDINGS & after.keys() if before.get(path) != after[path]]
            found |= {f"{kind}: {path}" for path in changed}
        shared = [
            [kind for kind in main_line(words.shapes) if kind in old.by_kind and kind in new.by_kind]
            for words in (old, new)
        ]
        if shared[0] != shared[1]:
            found.add(f"order in {newer.situation}")
    return found
