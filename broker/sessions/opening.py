"""From hello to an attached session: what is asked for is judged, found, made or branched off, and welcomed.

Caller: ``broker.sockets.connection``, once per connection, in its task.  Nothing here is kept: whoever is welcomed is
attached in the same breath, so that no frame can slip between.
"""

import time
from dataclasses import dataclass

from broker.auth import Identity
from broker.config.tree import Config
from broker.options import policy
from broker.options.standing import check_bound
from broker.pool.pool import Pool
from broker.sessions.entry import Entry
from broker.sessions.registry import Registry
from broker.sessions.welcome import welcome
from broker.turns.reader import Reader
from broker.turns.replay import Resume
from protocol.codes import CloseCode, ErrorCode, Start
from protocol.errors import ClientError, ConnectionRefused
from protocol.frames import Hello, Welcome
from protocol.options import SessionOptions


@dataclass(frozen=True, slots=True)
class Opened:
    """A session to attach to at once: the welcome, and the position after which the connection reads."""

    entry: Entry
    frame: Welcome
    cursor: int


class Opening:
    """What every hello is answered with; one per broker."""

    def __init__(self, config: Config, registry: Registry, pool: Pool) -> None:
        self._config = config
        self._registry = registry
        self._pool = pool

    def judge(self, hello: Hello, identity: Identity) -> SessionOptions:
        """The options as they hold.  Raises ``ClientError`` and ``ConnectionRefused`` for what may not be asked for."""
        if hello.role == "controller" and identity.max_role == "observer":
            raise ConnectionRefused(CloseCode.NOT_ALLOWED, "the token may only observe")
        if hello.session.mode == "continue" and hello.session.id is not None:
            raise _misfit("session.id does not go with mode continue, which takes the latest")
        if hello.role == "observer":
            if hello.session.mode in ("new", "fork"):
                raise _misfit(f"session.mode {hello.session.mode}: an observer attaches to a session that exists")
            if hello.options.given():
                raise _misfit("options: an observer sets none")
        return policy.check_options(hello.options, identity.policy)

    async def open(
        self, hello: Hello, options: SessionOptions, identity: Identity, subject: str, reader: Reader, heard_at: float
    ) -> Opened:
        """Have the session that hello means, with a process where one is needed, and its welcome.

        ``heard_at``: monotonic seconds.  Raises ``ConnectionRefused``, ``ClientError``, ``BrokerError``.  A cancel
        gives up the place in the queue and wipes a half-made branch.
        """
        if hello.role == "observer":
            entry = self._registry.find(hello.session, identity, subject)
            if entry is None:
                raise ConnectionRefused(CloseCode.UNKNOWN_SESSION)
            self._registry.replace(entry, reader)
            head = entry.session.log.head
            return self._opened(entry, hello, identity, head, heard_at, ignored=[], is_attached=True)
        entry, is_new = await self._entry(hello, options, identity, subject)
        entry.session.exchange.policy, entry.tenure.limits = identity.policy, identity.limits
        self._registry.replace(entry, reader)
        heard_from = entry.session.log.head
        ignored = entry.tenure.take_options(options, identity.credentials, reader)
        was_live = entry.tenure.is_live
        if options.lazy is not True:
            await entry.tenure.wait_ready(reader)
        is_attached = (was_live and not is_new) or options.lazy is True
        return self._opened(entry, hello, identity, heard_from, heard_at, ignored=ignored, is_attached=is_attached)

    async def _entry(
        self, hello: Hello, options: SessionOptions, identity: Identity, subject: str
    ) -> tuple[Entry, bool]:
        """The conversation, and whether it is new."""
        found = self._registry.find(hello.session, identity, subject)
        if identity.limits.tenant_disk_mb is not None and (found is None or hello.session.mode == "fork"):
            await self._registry.disk.check(identity.tenant, identity.limits)
            found = self._registry.find(hello.session, identity, subject)  # somebody else may have made it meanwhile
        if found is not None:
            self._judge_bound(found, hello, options, identity)
        if found is not None and hello.session.mode == "fork":
            return await self._registry.fork(found, identity, subject), True
        if found is not None:
            return found, False
        policy.check_credentials(options, identity.policy, is_needed=self._needs_credentials)
        return self._registry.create(hello.session.id, identity, subject), True

    def _judge_bound(self, found: Entry, hello: Hello, options: SessionOptions, identity: Identity) -> None:
        """Refuse what the next process would be bound to, hello's options over what there is, where a policy that has
        changed forbids it.  Nothing is changed by a refusal."""
        is_branch = hello.session.mode == "fork"
        if found.tenure.is_live and not is_branch:
            return
        wanted = found.session.exchange.bound.copy()
        if is_branch:
            wanted.take_spawn(options)
        wanted.merge(options, with_initialize=is_branch)
        if wanted.credentials is None:  # it was not kept over a restart of the broker
            policy.check_credentials(options, identity.policy, is_needed=self._needs_credentials)
        check_bound(wanted, identity.policy)

    @property
    def _needs_credentials(self) -> bool:
        """Neither the CLI nor the operator's environment (a cloud provider's) brings one."""
        has_provider = any(name.startswith("CLAUDE_CODE_USE_") for name in self._config.cli.env)
        return not (self._pool.is_simulated or has_provider)

    def _opened(
        self, entry: Entry, hello: Hello, identity: Identity, heard_from: int, heard_at: float, *,
        ignored: list[str], is_attached: bool,
    ) -> Opened:  # fmt: skip
        """``is_attached``: no process was taken for this hello."""
        session, lease = entry.session, entry.tenure.lease
        if hello.session.last_seq is None:  # live, from hello on: what a restored process told belongs to it
            resume = Resume(max(heard_from, session.log.tail), None)
        else:
            resume = session.log.resume(hello.session.epoch, hello.session.last_seq)
        start = None
        if lease is not None:
            start = Start.ATTACHED if is_attached else lease.start
        frame = welcome(
            session,
            hello,
            resume,
            start=start,
            miss_reason=None if is_attached or lease is None else lease.miss_reason,
            ready_ms=None if start is None else (time.monotonic() - heard_at) * 1e3,
            ignored=ignored,
            cli=(self._pool.cli_version, self._pool.is_simulated),
            max_message_bytes=self._config.server.max_message_bytes,
            allowed=identity.limits,
            last_close=entry.farewells.take(hello.client.instance),
        )
        return Opened(entry, frame, resume.cursor)


def _misfit(message: str) -> ClientError:
    return ClientError(ErrorCode.BAD_OPTIONS, message, close=CloseCode.BAD_FRAME)
