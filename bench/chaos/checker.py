"""What the clients were told, checked while it arrives: no gap, no repeat, one end for each message, no foreign word.

Pure: it is fed with what happened, in the order in which it happened, and knows no socket and no clock.
``bench.chaos.join`` holds the same against the ledger of the CLIs.  Callers: ``bench.chaos.traveller``,
``bench.chaos.world``.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

from bench.chaos.join import Join, Outcome
from bench.chaos.violations import Kind, Violations
from bench.ledger import Row, is_from_cli, line_digest, seq_of

CANARY: Final = re.compile(r"zq[a-z]{8}(?![a-z])")
TERMINALS: Final = ("broker.turn_completed", "broker.turn_failed")
TIMEOUTS: Final = ("first_token_timeout", "idle_timeout", "turn_timeout")
NO_PROCESS: Final = "pool_unavailable"
EPOCH_CHANGED: Final = "epoch_changed"


class _Message:
    """One message of a tenant."""

    def __init__(self) -> None:
        self.is_accepted = False
        self.ends: list[str] = []
        self.outcome = Outcome.OPEN


class _Client:
    """One tenant, over all of its connections."""

    def __init__(self, canary: str) -> None:
        self.canary = canary
        self.epoch: str | None = None
        self.born = 0
        """How often the broker had been restarted when the present connection was begun."""
        self.oldest = self.newest = 0
        """After which restart its log began: one of these, or between them."""
        self.last_seq = 0
        self.conversation = ""
        self.messages: dict[str, _Message] = {}


class Checker:
    """One per run."""

    def __init__(self, canaries: Mapping[str, str]) -> None:
        self.violations = Violations()
        self.counts: Counter[str] = Counter()
        self._clients = {name: _Client(canary) for name, canary in canaries.items()}
        self._join = Join(self.violations)
        self._restarts = 0
        self._killed = 0

    # -- what happens --

    def restarted(self) -> None:
        """The broker was killed: from now on every log is a new one."""
        self._restarts += 1
        self.counts["restarts of the broker"] += 1

    def killed(self) -> None:
        """A CLI was killed from outside: at most one client may be told that it gets no process."""
        self._killed += 1

    def connecting(self, name: str) -> None:
        """A tenant begins another connection."""
        self._clients[name].born = self._restarts

    def said(self, name: str, message_id: str) -> None:
        """A tenant sent a message, for the first time or again."""
        self._clients[name].messages.setdefault(message_id, _Message())

    def received(self, name: str, text: str) -> None:
        """A tenant got a whole frame."""
        client = self._clients[name]
        self.counts["frames"] += 1
        self._check_canaries(name, client, text)
        seq = seq_of(text)
        if seq is not None:
            self._check_seq(name, client, seq)
        if is_from_cli(text):
            if seq is not None:
                self._join.received(client.conversation, name, line_digest(text))
            return
        self._own_frame(name, client, json.loads(text))

    def wrote(self, row: Row) -> None:
        """A CLI wrote a row into its ledger."""
        self.counts["ledger rows"] += 1
        self._join.wrote(row)

    def settle(self) -> None:
        """Every row is here whose line may have been received: hold one against the other."""
        self._join.settle()

    def resolved(self, name: str, message_id: str) -> bool:
        """Whether the tenant has been told how this message ended."""
        message = self._clients[name].messages.get(message_id)
        return message is not None and message.outcome is not Outcome.OPEN

    def position(self, name: str) -> tuple[str | None, int]:
        """The epoch and the last seq that a tenant's hello should name."""
        client = self._clients[name]
        return client.epoch, client.last_seq

    def finish(self) -> Violations:
        """After the last row: what can only be said at the end."""
        self.settle()
        for name, client in self._clients.items():
            for message_id, message in client.messages.items():
                self._finish_message(name, message_id, message)
        return self.violations

    # -- how it is judged --

    def _check_canaries(self, name: str, client: _Client, text: str) -> None:
        for found in set(CANARY.findall(text)) - {client.canary}:
            self.violations.add(Kind.FOREIGN, name, f"{found} in {text[:200]}")

    def _check_seq(self, name: str, client: _Client, seq: int) -> None:
        if seq <= client.last_seq:
            self.violations.add(Kind.REPEAT, name, f"seq {seq} after {client.last_seq} in epoch {client.epoch}")
        elif seq > client.last_seq + 1:
            self.violations.add(Kind.GAP, name, f"seq {seq} after {client.last_seq} in epoch {client.epoch}")
        client.last_seq = max(seq, client.last_seq)

    def _own_frame(self, name: str, client: _Client, frame: dict[str, Any]) -> None:
        match frame["type"]:
            case "broker.welcome":
                self._welcomed(name, client, frame)
            case "broker.accepted":
                self._accepted(name, client, frame)
            case "broker.turn_completed" | "broker.turn_failed" if frame["id"] is not None:
                self._ended(name, client, frame)
            case "broker.error" if frame["code"] == NO_PROCESS and self._killed:
                # A process that is killed while it is being restored: told, and the client may come again.
                self._killed -= 1
                self.counts[f"told: {NO_PROCESS}"] += 1
            case "broker.error":
                self.violations.add(Kind.REFUSED, name, f"{frame['code']}: {frame['message'][:200]}")
            case _:
                pass

    def _welcomed(self, name: str, client: _Client, welcome: dict[str, Any]) -> None:
        self.counts["welcomes"] += 1
        lost, epoch = welcome["lost"], welcome["epoch"]
        self._check_epoch(name, client, epoch, lost)
        if lost is not None:
            self.counts[f"told as lost: {lost['reason']}"] += 1
            self._join.lost(client.conversation)
            client.last_seq = 0 if lost["reason"] == EPOCH_CHANGED else max(client.last_seq, lost["to"] or 0)
        client.conversation = welcome["cli"]["session_id"]

    def _check_epoch(self, name: str, client: _Client, epoch: str, lost: dict[str, Any] | None) -> None:
        """A welcome is as old as its connection at most: it may have been under way when the broker was killed."""
        oldest, newest = client.born, self._restarts
        if client.epoch is None:
            client.oldest, client.newest = oldest, newest
        elif epoch == client.epoch:
            if oldest > client.newest:
                self.violations.add(Kind.EPOCH, name, f"{epoch} went on over a restart of the broker")
            client.oldest, client.newest = max(oldest, client.oldest), min(newest, client.newest)
        else:
            is_told = lost is not None and lost["reason"] == EPOCH_CHANGED
            if newest <= client.oldest or not is_told:
                restarts = f"restarts {client.oldest} to {newest}"
                self.violations.add(Kind.EPOCH, name, f"{client.epoch} became {epoch}, told {lost}, {restarts}")
            client.oldest, client.newest = oldest, newest
        client.epoch = epoch

    def _accepted(self, name: str, client: _Client, frame: dict[str, Any]) -> None:
        message = client.messages.setdefault(frame["id"], _Message())
        message.is_accepted = True
        if frame.get("duplicate"):
            self.counts["messages sent again"] += 1
            outcome = frame.get("outcome")
            # The receipt tells the end to whoever cannot read it any more; what was read stays what it is.
            if outcome is not None and message.outcome is Outcome.OPEN:
                message.outcome = Outcome.YES if outcome == "completed" else Outcome.UNKNOWN

    def _ended(self, name: str, client: _Client, frame: dict[str, Any]) -> None:
        message = client.messages.setdefault(frame["id"], _Message())
        message.is_accepted = True
        is_completed = frame["type"] == TERMINALS[0]
        end = "completed" if is_completed else str(frame["reason"])
        self.counts[f"ended: {end}"] += 1
        message.ends.append(end)
        if len(message.ends) > 1:
            self.violations.add(Kind.TWO_TERMINALS, name, f"{frame['id']}: {message.ends} (seq {frame['seq']})")
        if end in TIMEOUTS:
            self.violations.add(Kind.FALSE_TIMEOUT, name, f"{frame['id']}: {end}")
        message.outcome = Outcome.YES if is_completed else Outcome(str(frame["applied"]))

    def _finish_message(self, name: str, message_id: str, message: _Message) -> None:
        if message.is_accepted:
            self.counts["messages accepted"] += 1
            if message.outcome is not Outcome.OPEN and not message.ends:
                self.counts["ended: told by its receipt alone"] += 1
            if message.outcome is Outcome.OPEN:
                self.violations.add(Kind.NO_TERMINAL, name, message_id)
        self._join.judge(name, message_id, message.outcome)
