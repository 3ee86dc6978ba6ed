"""The one ``initialize`` of a conversation when a client brings it, and what every other one is answered.

Pure.  Owner: one ``broker.sessions.exchange.Exchange``.  A process takes ``initialize`` once; only its hooks can be
changed by a second one, and only in versions of the CLI that say ``hook_on_failure_supported``.
"""

from typing import Literal

import msgspec
from msgspec import Raw, Struct

from broker.turns.reader import Owner, Reader
from protocol.answers import PRE_TOOL_USE
from protocol.controls import DECODE_ERRORS, Initialize

What = Literal["cached", "first", "hooks"]


class Refused(Exception):
    """This ``initialize`` cannot be carried out; the text is for its client."""


class _Answer(Struct, frozen=True):
    hook_on_failure_supported: bool = False


_answer = msgspec.json.Decoder(_Answer)


class Handshake:
    """Who initialized the conversation, with what, and what the CLI said."""

    def __init__(self) -> None:
        self.owner: Owner | None = None
        self.answer: Raw | None = None
        """The latest process's."""
        self._request: Initialize | None = None
        self._before: Initialize | None = None

    def judge(self, request: Initialize, reader: Reader, *, is_clients: bool) -> What:
        """What an ``initialize`` of ``reader`` comes to; ``is_clients``: the session was opened to take a client's.

        Raises ``Refused`` rather than let hooks or MCP servers be thought in force that are not.
        """
        guards = (request.hooks or {}).get(PRE_TOOL_USE, [])
        if any(matcher.onFailure == "continue" for matcher in guards):
            raise Refused("hooks.PreToolUse: onFailure continue: a hook that guards a tool never fails open")
        if is_clients and self.owner is None:
            return "first"
        if request == self._request:
            if self._is_nobodys(request, reader):
                raise Refused("hooks, sdkMcpServers: whoever declared them without client.instance is gone")
            if self.answer is None or self._before is not None:
                raise Refused("initialize is being answered: ask again")
            return "cached"
        if is_clients and self.owner is not None and self.owner.is_(reader):
            return self._again(request)
        for name in ("hooks", "sdkMcpServers"):
            if getattr(request, name):
                why = "another client's initialize came first" if is_clients else "only with options.initialize: client"
                raise Refused(f"{name}: {why}")
        if self.answer is None:
            raise Refused("initialize is being answered: ask again")
        return "cached"

    def _is_nobodys(self, request: Initialize, reader: Reader) -> bool:
        """Whether it declares what was declared by a connection without a name, which no other one can be."""
        is_nameless = self.owner is not None and not self.owner.instance and not self.owner.is_(reader)
        return is_nameless and bool(request.hooks or request.sdkMcpServers)

    def _again(self, request: Initialize) -> What:
        """The owner sends another one."""
        assert self._request is not None
        if msgspec.structs.replace(request, hooks=None) != msgspec.structs.replace(self._request, hooks=None):
            raise Refused("initialize was answered: only its hooks can be changed")
        if self._before is not None:
            raise Refused("initialize is being answered: ask again")
        if not self._can_change_hooks:
            raise Refused("hooks: this version of the CLI takes none after the first initialize")
        return "hooks"

    @property
    def _can_change_hooks(self) -> bool:
        try:
            return self.answer is not None and _answer.decode(self.answer).hook_on_failure_supported
        except DECODE_ERRORS:
            return False

    def asked(self, request: Initialize, reader: Reader) -> None:
        """The CLI is being told this one."""
        self.owner, self._request, self._before = Owner.of(reader), request, self._request

    def answered(self, answer: Raw) -> None:
        """The CLI has taken it; or a process was told it again."""
        self.answer, self._before = answer, None

    def refused(self) -> None:
        """The CLI has refused it, or died: what was before holds; after the first one, somebody may try again."""
        self._request, self._before = self._before, None
        if self._request is None:
            self.owner = None
