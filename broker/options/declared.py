"""What client instances serve to the CLI of a session: hooks, and MCP servers that live in the client.

Pure.  Owner: one ``broker.sessions.exchange.Exchange``; it outlives the session's processes.  The CLI is given longer
deadlines than clients are, so that it is always the broker who answers in time.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from msgspec import UNSET
from msgspec.structs import asdict

from broker.turns.reader import Owner
from protocol.answers import PRE_TOOL_USE
from protocol.controls import HookEvent, HookMatcher
from protocol.mcp import McpSdk, McpServer

HOOK_TIMEOUT_S = 60.0
"""For a hook that was declared without a timeout of its own."""
CLI_EXTRA_S = 10.0
"""How much longer the CLI waits for a hook than the broker does."""

Hooks = Mapping[HookEvent, Sequence[HookMatcher]]


class Declared:
    """Who serves what.  Hooks have one owner; each MCP server has its own."""

    def __init__(self) -> None:
        self.hooks_owner: Owner | None = None
        self._timeouts: dict[tuple[str, str], float] = {}
        self._servers: dict[str, Owner] = {}
        self._tried: dict[str, tuple[Owner | None, Owner | None]] | None = None
        """Whose each server was, and is while the CLI is asked to take it."""

    def take_over(self, other: "Declared") -> None:
        """The same owners serve the same, of a conversation that branches off."""
        self.hooks_owner, self._timeouts = other.hooks_owner, dict(other._timeouts)
        self._servers = dict(other._servers)

    def take_hooks(self, owner: Owner, hooks: Hooks) -> None:
        """These hooks, and no others, are the owner's from now on."""
        self.hooks_owner, self._timeouts = owner, {}
        for event, matchers in hooks.items():
            for matcher in matchers:
                timeout = HOOK_TIMEOUT_S if matcher.timeout is UNSET else matcher.timeout
                for callback_id in matcher.hookCallbackIds:
                    known = self._timeouts.get((event, callback_id), timeout)
                    self._timeouts[event, callback_id] = min(known, timeout)

    def hook_timeout_s(self, event: str, callback_id: str) -> float | None:
        """How long the owner has to answer; None for a hook that nobody has declared."""
        return self._timeouts.get((event, callback_id))

    def take_servers(self, owner: Owner, servers: Mapping[str, McpServer]) -> None:
        """The servers among these that live in a client are the owner's; others of these names are nobody's."""
        self._set({name: owner if isinstance(server, McpSdk) else None for name, server in servers.items()})

    def try_servers(self, owner: Owner, servers: Mapping[str, McpServer]) -> None:
        """The same until ``settle_servers``: the CLI may speak to them, and may still refuse them."""
        before = {name: self._servers.get(name) for name in servers}
        self.take_servers(owner, servers)
        self._tried = {name: (before[name], self._servers.get(name)) for name in servers}

    def settle_servers(self, names: Collection[str], *, is_refused: bool) -> None:
        """What was tried is over, and ``names`` are in force.

        Those that were refused are whose they were, but for what somebody else has taken since.
        """
        tried, self._tried = self._tried or {}, None
        if is_refused:
            self._set({name: old for name, (old, new) in tried.items() if self._servers.get(name) is new})
        self.keep_servers(names)

    def keep_servers(self, names: Collection[str]) -> None:
        """No others are in force any more; while some are tried, this waits for the end of that."""
        if self._tried is None:
            self._servers = {name: owner for name, owner in self._servers.items() if name in names}

    def _set(self, owners: Mapping[str, Owner | None]) -> None:
        for name, owner in owners.items():
            if owner is None:
                self._servers.pop(name, None)
            else:
                self._servers[name] = owner

    def owner_of(self, server: str) -> Owner | None:
        """Who serves the MCP server of this name."""
        return self._servers.get(server)


def cli_hooks(hooks: Hooks) -> dict[str, Any]:
    """``hooks`` as the CLI is told them: later deadlines, and what guards a tool blocks it when all else fails."""
    return {event: [_cli_matcher(event, matcher) for matcher in matchers] for event, matchers in hooks.items()}


def _cli_matcher(event: str, matcher: HookMatcher) -> dict[str, Any]:
    given = {name: value for name, value in asdict(matcher).items() if value is not UNSET and value is not None}
    timeout = HOOK_TIMEOUT_S if matcher.timeout is UNSET else matcher.timeout
    guard = {"onFailure": "block"} if event == PRE_TOOL_USE else {}
    return given | guard | {"timeout": timeout + CLI_EXTRA_S}
