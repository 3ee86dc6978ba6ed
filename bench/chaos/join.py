"""The clients' side joined with the CLIs' ledger: each line once and in order, each message at most once.  Pure.

What a client got must be lines of its conversation's processes, in their order, byte for byte (SHA-256); a line between
two that it got, written by the same process, must have come too, unless the broker told that something is lost.  Lines
at the end of a process may be missing: it was killed, or nobody was there.  Caller: ``bench.chaos.checker``.
"""

import json
from collections import Counter, defaultdict, deque
from enum import StrEnum
from typing import NamedTuple

from bench.chaos.violations import Kind, Violations
from bench.ledger import Cli, Row, cli, conversations, is_forwarded


class Outcome(StrEnum):
    """What a client was told of a message: whether it may have had an effect."""

    OPEN = "open"
    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


class _Line(NamedTuple):
    """A line that clients are to see."""

    process: Cli
    digest: str


class _Received(NamedTuple):
    """A frame of a client; ``digest`` None: the broker said that something is lost, here."""

    who: str
    digest: str | None


class _Conversation:
    """What is not yet settled of one conversation."""

    def __init__(self) -> None:
        self.written: deque[_Line] = deque()
        self.received: deque[_Received] = deque()
        self.last: Cli | None = None
        """The process of the last line that was matched, when nothing was lost since."""


class Join:
    """Fed by ``Checker``; what is settled is forgotten."""

    def __init__(self, violations: Violations) -> None:
        self._violations = violations
        self._conversations: defaultdict[str, _Conversation] = defaultdict(_Conversation)
        self._of_process: dict[Cli, str] = {}
        self._ran: Counter[str] = Counter()

    def wrote(self, row: Row) -> None:
        """One row of the ledger, in the order of the file."""
        process = cli(row)
        if row["dir"] == "meta":
            self._of_process.update(dict.fromkeys([process], (conversations(row) or [""])[0]))
        elif row["dir"] == "in":
            self._read(row)
        elif is_forwarded(row):
            known = self._of_process.get(process, "")
            self._conversations[known].written.append(_Line(process, row["sha256"]))

    def received(self, conversation: str, who: str, digest: str) -> None:
        """A client got a frame that came from a CLI."""
        self._conversations[conversation].received.append(_Received(who, digest))

    def lost(self, conversation: str) -> None:
        """A client was told that frames are lost between the last one and the next."""
        self._conversations[conversation].received.append(_Received("", None))

    def settle(self) -> None:
        """Match everything that was received; the rows of all of it must be here."""
        for conversation in self._conversations.values():
            while conversation.received:
                self._match(conversation, conversation.received.popleft())

    def judge(self, who: str, message_id: str, outcome: Outcome) -> None:
        """At the end: how often a message ran, beside what its sender was told."""
        count = self._ran[message_id]
        if count > 1:
            self._violations.add(Kind.RAN_TWICE, who, f"{message_id}: {count} times")
        elif count == 1 and outcome is Outcome.NO:
            self._violations.add(Kind.RAN_ALL_THE_SAME, who, message_id)
        elif count == 0 and outcome is Outcome.YES:
            self._violations.add(Kind.NEVER_RAN, who, message_id)

    def _read(self, row: Row) -> None:
        # Only what tenants say is of interest here: '"type":"user"' spares decoding every control request.
        line = row.get("line", "")
        if '"user"' in line and (message := json.loads(line)).get("type") == "user":
            self._ran[message["uuid"]] += 1

    def _match(self, conversation: _Conversation, received: _Received) -> None:
        if received.digest is None:
            conversation.last = None
            return
        skipped: list[_Line] = []
        while conversation.written:
            line = conversation.written.popleft()
            if line.digest == received.digest:
                gone = [one for one in skipped if one.process == line.process == conversation.last]
                if gone:
                    self._violations.add(
                        Kind.SWALLOWED,
                        received.who,
                        f"{len(gone)} lines of process {line.process.pid}, first {gone[0].digest}",
                    )
                conversation.last = line.process
                return
            skipped.append(line)
        conversation.written.extend(skipped)
        self._violations.add(Kind.ALTERED, received.who, f"no line of its CLIs has SHA-256 {received.digest}")
