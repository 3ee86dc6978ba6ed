"""The checker of a chaos run finds what it must: one defect of each kind is planted into a recorded history."""

import json
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import pytest

from bench.chaos.checker import Checker
from bench.chaos.violations import MOST_KEPT, Kind, Violations

ALICE, BOB = "zqalicealic", "zqbobbobbob"
CANARIES = {"a": ALICE[:10], "b": BOB[:10]}
Event = tuple[Any, ...]
"""A method of ``Checker`` and its arguments."""
History = list[Event]


def row(session: str, direction: str, pid: int = 1, **fields: Any) -> Event:
    """One row of the ledger, of a process of that session."""
    return ("wrote", {"pid": pid, "start": ord(session), "dir_inode": 1, "dir": direction, **fields})


def cli_line(session: str, text: str) -> str:
    """A line of a CLI."""
    return json.dumps({"type": "assistant", "text": f"{CANARIES[session]} {text}"}, separators=(",", ":"))


def wrote(session: str, line: str, pid: int = 1) -> Event:
    """The ledger's row for it."""
    return row(session, "out", pid, line=line, sha256=sha256(line.encode()).hexdigest())


def sent(session: str, frame: dict[str, Any] | str, seq: int | None = None) -> Event:
    """A frame as a client gets it."""
    text = frame if isinstance(frame, str) else json.dumps(frame, separators=(",", ":"))
    return ("received", session, text if seq is None else f'{text[:-1]},"seq":{seq}}}')


def welcome(session: str, epoch: str, lost: dict[str, Any] | None = None) -> Event:
    """A welcome."""
    cli = {"session_id": f"cli-{session}"}
    return sent(session, {"type": "broker.welcome", "epoch": epoch, "lost": lost, "cli": cli})


def completed(message_id: str) -> dict[str, Any]:
    """The end of a turn."""
    return {"type": "broker.turn_completed", "id": message_id}


def failed(message_id: str, reason: str, applied: str) -> dict[str, Any]:
    """The other end of a turn."""
    return {"type": "broker.turn_failed", "id": message_id, "reason": reason, "applied": applied}


def turn(session: str, number: int, first_seq: int, pid: int = 1) -> History:
    """A message with an answer of three lines; the last of its events is its end."""
    message_id = f"{session}-{number}"
    lines = [cli_line(session, f"{number}.{part}") for part in range(3)]
    user = json.dumps({"type": "user", "uuid": message_id})
    answer = [event for part, line in enumerate(lines) for event in (
        wrote(session, line, pid), sent(session, line, first_seq + part))]  # fmt: skip
    return [
        ("said", session, message_id),
        sent(session, {"type": "broker.accepted", "id": message_id, "duplicate": False}),
        row(session, "in", pid, line=user),
        *answer,
        sent(session, completed(message_id), first_seq + 3),
    ]


def clean() -> History:
    """Two tenants: a turn each, a cut and a resume, a CLI that dies, a restart of the broker, and another turn each."""
    told = {"from": 5, "to": None, "reason": "epoch_changed"}
    events: History = []
    for session in "ab":
        events += [("connecting", session), row(session, "meta", argv=[f"--session-id=cli-{session}"])]
        events += [welcome(session, "one"), *turn(session, 1, 1)]
        events += [("connecting", session), welcome(session, "one")]
    events += [
        row("a", "meta", 2, argv=["--resume=cli-a"]),
        ("said", "a", "a-2"),
        sent("a", {"type": "broker.accepted", "id": "a-2", "duplicate": False}),
        row("a", "in", 2, line=json.dumps({"type": "user", "uuid": "a-2"})),
        wrote("a", cli_line("a", "never sent: it was killed"), 2),
        sent("a", failed("a-2", "cli_exited", "unknown"), 5),
        ("settle",),
        ("restarted",),
    ]
    for session in "ab":
        events += [("connecting", session), row(session, "meta", 3, argv=[f"--resume=cli-{session}"])]
        events += [welcome(session, "two", told), *turn(session, 3, 1, 3)]
    return events


def judged(events: History) -> Violations:
    """What the checker makes of it."""
    checker = Checker(CANARIES)
    for name, *arguments in events:
        getattr(checker, name)(*arguments)
    return checker.finish()


def index(events: History, *parts: str, kind: str = "received") -> int:
    """The first event of this kind that holds these words."""
    return next(n for n, event in enumerate(events) if event[0] == kind and all(part in str(event) for part in parts))


def replaced(events: History, place: int, *others: Event) -> History:
    return [*events[:place], *others, *events[place + 1 :]]


def renumbered(events: History, place: int, session: str) -> History:
    """Without the frame at ``place``; those behind it in its log move up, as if it had never been numbered."""
    found = events[:place]
    for event in events[place + 1 :]:
        if event[0] == "restarted":
            return found + events[events.index(event) :]
        if event[0] == "received" and event[1] == session and '"seq":' in event[2]:
            head, _, number = event[2].rpartition('"seq":')
            found.append((*event[:2], f'{head}"seq":{int(number[:-1]) - 1}}}'))
        else:
            found.append(event)
    return found


def swapped(events: History) -> History:
    """Two lines of an answer in the other order, numbered as they came."""
    first, second = index(events, "1.0", '"seq":1'), index(events, "1.1", '"seq":2')
    events = replaced(events, first, sent("a", cli_line("a", "1.1"), 1))
    return replaced(events, second, sent("a", cli_line("a", "1.0"), 2))


def edit(
    change: Callable[[History, int], History], *parts: str, kind: str = "received"
) -> Callable[[History], History]:
    """A change at the first event that holds these words."""
    return lambda events: change(events, index(events, *parts, kind=kind))


LAST = '"id":"b-3","seq":4'
PLANTS: dict[str, tuple[Kind, Callable[[History], History]]] = {
    "a frame is left out": (Kind.GAP, edit(replaced, '"seq":2')),
    "a frame comes twice": (Kind.REPEAT, edit(lambda e, n: replaced(e, n, e[n], e[n]), '"seq":2')),
    "a log begins again": (
        Kind.REPEAT, edit(lambda e, n: [*e[: n + 1], sent("a", completed("a-1"), 1), *e[n + 1 :]], '"seq":5'),
    ),
    "another log, not told": (
        Kind.EPOCH, edit(lambda e, n: replaced(e, n, welcome("a", "two")), '"two"'),
    ),
    "another log without a restart": (
        Kind.EPOCH, lambda events: [event for event in events if event[0] != "restarted"],
    ),
    "a log outlives a restart": (
        Kind.EPOCH, edit(lambda e, n: replaced(e, n, welcome("a", "one")), '"two"'),
    ),
    "another tenant's word": (
        Kind.FOREIGN, lambda events: [*events, sent("b", {"type": "broker.history", "frames": [CANARIES["a"]]})],
    ),
    "a message without an end": (Kind.NO_TERMINAL, edit(replaced, LAST)),
    "two ends in one log": (
        Kind.TWO_TERMINALS, edit(lambda e, n: [*e, sent("b", completed("b-3"), 5)], LAST),
    ),
    "two ends over a restart": (
        Kind.TWO_TERMINALS, lambda events: [*events, sent("b", failed("b-1", "broker_restarted", "unknown"), 5)],
    ),
    "a CLI reads a message twice": (
        Kind.RAN_TWICE, edit(lambda e, n: replaced(e, n, e[n], e[n]), "a-2", kind="wrote"),
    ),
    "completed, but no CLI read it": (Kind.NEVER_RAN, edit(replaced, "b-3", kind="wrote")),
    "not applied, but a CLI read it": (
        Kind.RAN_ALL_THE_SAME,
        edit(lambda e, n: replaced(e, n, sent("a", failed("a-2", "cancelled", "no"), 5)), "cli_exited"),
    ),
    "another byte in a frame": (
        Kind.ALTERED, edit(lambda e, n: replaced(e, n, sent("a", cli_line("a", "1.0!"), 1)), "1.0", '"seq":1'),
    ),
    "two lines in the other order": (Kind.ALTERED, swapped),
    "a line of another conversation": (
        Kind.ALTERED, edit(lambda e, n: replaced(e, n, sent("a", cli_line("a", "3.0"), 1)), "1.0", '"seq":1'),
    ),
    "a line of a CLI is never numbered": (Kind.SWALLOWED, edit(lambda e, n: renumbered(e, n, "a"), "1.1", '"seq":2')),
    "silence that was none": (
        Kind.FALSE_TIMEOUT,
        edit(lambda e, n: replaced(e, n, sent("a", failed("a-2", "idle_timeout", "unknown"), 5)), "cli_exited"),
    ),
    "a refusal": (
        Kind.REFUSED,
        lambda events: [*events, sent("b", {"type": "broker.error", "code": "internal", "message": "?"})],
    ),
}  # fmt: skip


def test_a_clean_history_is_clean() -> None:
    """Cuts, resumes, a crash and a restart of the broker, all of them told, are no violation."""
    found = judged(clean())
    assert found.kept == []


@pytest.mark.parametrize("plant", PLANTS)
def test_a_planted_defect_is_found_and_named(plant: str) -> None:
    """Each kind is found, with whose it is and where to look."""
    kind, change = PLANTS[plant]
    events = change(clean())
    assert events != clean()
    found = judged(events)
    assert found.counts[kind] >= 1, found.kept
    assert [one for one in found.kept if one.kind is kind and one.who in CANARIES and one.detail]


def test_what_was_told_as_lost_is_no_gap() -> None:
    """A log that has let frames go says so; what comes behind them is in order."""
    events = clean()
    place = index(events, '"seq":3')
    lost = {"from": 2, "to": 2, "reason": "too_far_behind"}
    second = index(events, '"seq":2')
    events = [*events[:second], *events[second + 1 : place], welcome("a", "one", lost), *events[place:]]
    assert judged(events).kept == []


def test_the_receipt_of_a_repeat_tells_an_end_that_was_lost() -> None:
    """Who is told that a message was a duplicate with an outcome knows how it ended; completed means that it ran."""
    events = [event for event in clean() if LAST not in str(event)]
    receipt = {"type": "broker.accepted", "id": "b-3", "duplicate": True, "outcome": "completed"}
    assert judged([*events, sent("b", receipt)]).kept == []
    without = [event for event in events if not (event[0] == "wrote" and "b-3" in str(event))]
    assert judged([*without, sent("b", receipt)]).counts == {Kind.NEVER_RAN: 1}


def test_who_gets_no_process_after_a_kill_is_told_so() -> None:
    """A CLI that was killed in its start is a reason; without a kill, or for a second client, it is a refusal."""
    told = sent("b", {"type": "broker.error", "code": "pool_unavailable", "message": "?"})
    assert judged([*clean(), ("killed",), told]).kept == []
    assert judged([*clean(), told]).counts == {Kind.REFUSED: 1}
    assert judged([*clean(), ("killed",), told, told]).counts == {Kind.REFUSED: 1}


def test_every_violation_is_counted_and_the_first_are_kept() -> None:
    """A broker that is wrong all the time does not fill the memory of its checker."""
    found = Violations()
    for number in range(MOST_KEPT + 10):
        found.add(Kind.GAP, "a", str(number))
    assert (found.counts[Kind.GAP], len(found.kept)) == (MOST_KEPT + 10, MOST_KEPT)
    assert str(found.kept[0]) == "gap (a): 0"
