"""What an operator may set: one tree of frozen structs, its defaults, and the contradictions that are refused.

Owner: none, a ``Config`` is immutable.  Callers: ``broker.__main__`` loads it; everybody else is handed the part they
need.  Over 300 lines because the tree is one thing: it is the reference of every key, its bounds and its meaning.
Seconds end in ``_s``, mebibytes in ``_mb``, everything else named ``bytes`` is bytes.
"""

import ipaddress
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, field
from msgspec.structs import replace

from broker.config import sources
from broker.config.limits import Limits
from broker.config.policy import Policy
from broker.config.profile import Profile, mistakes
from broker.config.types import (
    Bytes,
    Count,
    FilePath,
    Grace,
    HostName,
    Listen,
    Origin,
    ProfileName,
    Seconds,
    UserId,
    VariableName,
    VariableValue,
)
from broker.config.types import says as _says
from broker.errors import ConfigError
from protocol.options import Model

CREDENTIAL_VARIABLES = ("CLAUDE_CODE_OAUTH_TOKEN", "ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN")
"""Environment variables that the CLI takes a credential from."""
SCRUB_VARIABLE = "CLAUDE_CODE_SUBPROCESS_ENV_SCRUB"
"""Environment variable by which the CLI hides credentials from its tools."""
MB_PER_PROCESS = 400
"""What one process of the CLI is budgeted with: about 120 MB of its own after start, and room for a long turn."""

SMALLEST_PROCESS_MB = 256
"""What the CLI itself needs: from 85 MB when it has started to 256 MB in a turn.  A lower ceiling kills every one."""


class Server(Struct, frozen=True, forbid_unknown_fields=True):
    """The public listener."""

    listen: Annotated[Listen, _says("HOST:PORT; port 0 lets the system choose.")] = "127.0.0.1:8765"
    allowed_origins: Annotated[
        list[Origin], _says("Origins whose pages may connect; a loopback listener adds its own.")
    ] = []
    allowed_hosts: Annotated[
        list[HostName], _says("Host headers that are answered; a loopback listener adds its own.")
    ] = []
    loop: Annotated[Literal["auto", "asyncio", "uvloop"], _says("Event loop; auto: uvloop where installed.")] = "auto"
    hello_timeout_s: Annotated[Seconds, _says("From the upgrade to broker.hello.")] = 5
    hello_max_bytes: Annotated[Bytes, _says("Largest message of a socket that is not authenticated yet.")] = 65536
    max_message_bytes: Annotated[
        int, Meta(ge=1024, le=16 * 2**20), _says("Largest message of an authenticated socket.")
    ] = 8388608
    max_inbound_bytes: Annotated[Bytes, _says("Messages on their way that nobody has taken, of all sockets.")] = (
        67108864
    )
    max_unauthenticated: Annotated[Count, _says("Sockets without a hello, in all.")] = 500
    max_unauthenticated_per_ip: Annotated[Count, _says("Sockets without a hello, per address.")] = 50
    ping_interval_s: Annotated[Seconds, _says("Between pings; the pong has as long to come.")] = 20
    send_deadline_s: Annotated[Seconds, _says("Without progress of bytes out, or of a large message in.")] = 10
    write_buffer_bytes: Annotated[Bytes, _says("Unsent bytes of a socket, above the batch in flight.")] = 262144


class Admin(Struct, frozen=True, forbid_unknown_fields=True):
    """The listener of metrics and probes."""

    listen: Annotated[Listen, _says("HOST:PORT; GET only.")] = "127.0.0.1:9464"


class Auth(Struct, frozen=True, forbid_unknown_fields=True):
    """Who may connect."""

    mode: Annotated[Literal["none", "tokens"], _says("none: everybody is tenant local; loopback only.")] = "none"
    file: Annotated[FilePath, _says("Tenants and the hashes of their tokens; watched.")] = "tenants.toml"


class Cli(Struct, frozen=True, forbid_unknown_fields=True):
    """The program that is kept warm."""

    command: Annotated[FilePath, _says("auto, simulated, or a path.")] = "auto"
    env: Annotated[dict[VariableName, VariableValue], _says("Added to each process's environment.")] = {}
    scrub: Annotated[
        Literal["auto", "on", "off"],
        _says("Hide credentials from the agent's tools; auto: where bubblewrap and socat work."),
    ] = "auto"

    def __repr__(self) -> str:
        return f"Cli(command={self.command!r}, env={sorted(self.env)})"


class Pool(Struct, frozen=True, forbid_unknown_fields=True):
    """How many processes, started how."""

    max_processes: Annotated[int, Meta(ge=1, le=10000), _says("In all; see memory_budget_mb.")] = 32
    memory_budget_mb: Annotated[
        Annotated[int, Meta(ge=MB_PER_PROCESS, le=2**30)] | None, _says("Never more processes than this / 400.")
    ] = None
    spawn_concurrency: Annotated[int, Meta(ge=1, le=256), _says("Starts at the same time.")] = 2
    start_timeout_s: Annotated[Seconds, _says("From exec to the answer of the readiness probe.")] = 30
    bind_timeout_s: Annotated[Seconds, _says("For the answers of the bind burst.")] = 10
    mcp_bind_timeout_s: Annotated[Seconds, _says("For MCP servers, before the first user line.")] = 5
    queue_timeout_s: Annotated[Seconds, _says("How long a tenant waits for a process.")] = 30
    max_waiting: Annotated[int, Meta(ge=0, le=1_000_000), _says("Tenants that may wait at once.")] = 1000
    process_memory_mb: Annotated[
        Annotated[int, Meta(ge=SMALLEST_PROCESS_MB, le=2**20)] | None,
        _says("A process is killed when it, and what it has started, hold more; null: no limit, in a file 1048576."),
    ] = 4096
    cgroup: Annotated[
        Literal["auto", "off"], _says("auto: a cgroup per process, to end its whole tree by, where they can be made.")
    ] = "auto"
    isolation: Annotated[
        Literal["none", "uid", "userns"],
        _says("uid: each session its own system user (root only); userns: namespaces."),
    ] = "none"
    uid_range: Annotated[
        list[UserId], Meta(min_length=2, max_length=2), _says("First and last id that isolation uid gives to sessions.")
    ] = field(default_factory=lambda: [20000, 39999])
    profiles: Annotated[dict[ProfileName, Profile], _says("Without any: one named default.")] = field(
        default_factory=lambda: {"default": Profile()}
    )

    @property
    def user_ids(self) -> range:
        """The system ids that belong to sessions alone; none unless isolation is uid."""
        return range(self.uid_range[0], self.uid_range[1] + 1) if self.isolation == "uid" else range(0)

    @property
    def process_limit(self) -> int:
        """``max_processes``, or what the memory budget allows when that is less."""
        budget = self.max_processes if self.memory_budget_mb is None else self.memory_budget_mb // MB_PER_PROCESS
        return min(self.max_processes, budget)


class Session(Struct, frozen=True, forbid_unknown_fields=True):
    """A conversation without a running turn."""

    detach_timeout_s: Annotated[Grace, _says("Without clients: its process is stopped after this.")] = 120
    hibernate_after_s: Annotated[Grace, _says("Idle with clients: its process is stopped after this.")] = 600
    min_resident_s: Annotated[
        Grace, _says("A process that others wait for is not asked of an idle session before.")
    ] = 30
    retain_days: Annotated[Grace, _says("A stopped session that was not used for so many days is deleted.")] = 30
    max_sessions: Annotated[Count, _says("Sessions in all.")] = 10000
    fork_max_mb: Annotated[int, Meta(ge=1, le=2**20), _says("What a fork copies: transcript and files.")] = 256
    fork_max_files: Annotated[Count, _says("Files that a fork copies.")] = 10000


class Turn(Struct, frozen=True, forbid_unknown_fields=True):
    """One message and its answer."""

    first_token_timeout_s: Annotated[Seconds, _says("From the line written to the first token.")] = 120
    idle_timeout_s: Annotated[Seconds, _says("Silence within a turn.")] = 600
    timeout_s: Annotated[Seconds, _says("The whole turn.")] = 3600
    permission_timeout_s: Annotated[Seconds, _says("An unanswered permission prompt is denied after this.")] = 300
    queue: Annotated[int, Meta(ge=0, le=10000), _says("Messages that may wait behind a turn.")] = 16


class Replay(Struct, frozen=True, forbid_unknown_fields=True):
    """What is kept for clients that come back."""

    frames: Annotated[Count, _says("Frames per session.")] = 10000
    bytes: Annotated[Bytes, _says("Bytes per session.")] = 8388608
    seconds: Annotated[Grace, _says("After the later of the last detach and the last terminal frame.")] = 120
    total_bytes: Annotated[Bytes, _says("Bytes of all sessions.")] = 536870912


class Stop(Struct, frozen=True, forbid_unknown_fields=True):
    """How things end."""

    eof_grace_s: Annotated[Grace, _says("From the end of stdin to SIGTERM.")] = 5
    term_grace_s: Annotated[Grace, _says("From SIGTERM to SIGKILL of the tree.")] = 5
    drain_timeout_s: Annotated[Grace, _says("For running turns when the broker stops.")] = 30


class State(Struct, frozen=True, forbid_unknown_fields=True):
    """What lies on disk."""

    dir: Annotated[FilePath, _says("The sessions' directories; created with mode 0700.")] = "var"


class Config(Struct, frozen=True, forbid_unknown_fields=True):
    """The whole configuration of a broker."""

    models: Annotated[list[Model], Meta(min_length=1, max_length=256), _says("What /v1/models lists.")] = field(
        default_factory=lambda: ["sonnet", "opus", "haiku"]
    )
    server: Server = Server()
    admin: Admin = Admin()
    auth: Auth = Auth()
    cli: Cli = Cli()
    pool: Pool = Pool()
    session: Session = Session()
    turn: Turn = Turn()
    replay: Replay = Replay()
    stop: Stop = Stop()
    state: State = State()
    limits: Limits = Limits()
    policy: Policy = Policy()


def schema() -> bytes:
    """The JSON Schema of the configuration file."""
    return msgspec.json.format(msgspec.json.encode(msgspec.json.schema(Config)), indent=2) + b"\n"


def endpoint(listen: str) -> tuple[str, int]:
    """Split ``HOST:PORT``; a bracketed IPv6 address loses its brackets."""
    host, _, port = listen.rpartition(":")
    return host.strip("[]"), int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``.  Names other than localhost are not looked up: no."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def load(path: Path | None, environ: Mapping[str, str], overrides: Mapping[str, object]) -> Config:
    """Read defaults < TOML file < ``BROKER__...`` variables < flags (``{"server.listen": "..."}``, None: not given).

    Relative paths in the file, and default ones, are taken from the file's folder; those of variables and flags, and
    all of them without a file, from the working directory.  Raises ``ConfigError`` for the first mistake found.
    """
    cwd = Path.cwd()
    folder = cwd if path is None else Path(os.path.abspath(path)).parent
    written = {} if path is None else _anchored(sources.toml_layer(path), folder)
    for layer in (sources.environ_layer(Config, environ), sources.flag_layer(overrides)):
        written = sources.merged(written, _anchored(layer, cwd))
    defaults = {"auth": {"file": str(folder / Auth().file)}, "state": {"dir": str(folder / State().dir)}}
    config = sources.build(Config, sources.merged(defaults, written))
    keys = sources.paths(written)
    if not config.pool.profiles or "pool.profiles" not in keys:
        spares = Profile(warm=min(Profile().warm, config.pool.process_limit))
        config = replace(config, pool=replace(config.pool, profiles={"default": spares}))
    for error in contradictions(config, keys):
        raise error
    return config


def _anchored(layer: sources.Layer, folder: Path) -> sources.Layer:
    layer = sources.anchored(sources.anchored(layer, "auth.file", folder), "state.dir", folder)
    pool: Any = layer.get("pool")
    profiles = pool.get("profiles") if isinstance(pool, dict) else None
    for name, profile in profiles.items() if isinstance(profiles, dict) else ():
        if isinstance(profile, dict) and isinstance(profile.get("plugin_dirs"), list):  # text is JSON, of a variable
            layer = sources.anchored(layer, f"pool.profiles.{name}.plugin_dirs", folder)
    cli: Any = layer.get("cli")
    # A bare name is looked up on PATH, only something with a slash is a path.
    is_path = isinstance(cli, dict) and isinstance(cli.get("command"), str) and "/" in cli["command"]
    return sources.anchored(layer, "cli.command", folder) if is_path else layer


# -- contradictions --------------------------------------------------------------------------------------------------


def contradictions(config: Config, written: set[str]) -> Iterator[ConfigError]:
    """Values that are fine alone and not together.  ``written``: the keys that somebody wrote."""
    yield from _listeners(config)
    yield from _identity(config, written)
    yield from _processes(config)
    yield from _deadlines(config, written)


def _listeners(config: Config) -> Iterator[ConfigError]:
    for path, listen in (("server.listen", config.server.listen), ("admin.listen", config.admin.listen)):
        if endpoint(listen)[1] > 65535:
            yield ConfigError(path, f"found port {endpoint(listen)[1]}", "a port from 0 to 65535")
    if config.server.listen == config.admin.listen and endpoint(config.admin.listen)[1]:
        yield ConfigError("admin.listen", "is the same as server.listen", "another port")


def _identity(config: Config, written: set[str]) -> Iterator[ConfigError]:
    host = endpoint(config.server.listen)[0]
    if config.auth.mode == "none" and not is_loopback(host):
        yield ConfigError(
            "auth.mode", f"is none, but server.listen {config.server.listen} is not loopback",
            "tokens, or listen on 127.0.0.1",
        )  # fmt: skip
    if config.auth.mode == "tokens" and "pool.isolation" not in written:
        yield ConfigError(
            "pool.isolation", "is not written out, and with auth.mode tokens the tenants would share one system user",
            '"uid", "userns", or write isolation = "none" to accept that',
        )  # fmt: skip
    if SCRUB_VARIABLE in config.cli.env:
        yield ConfigError(f"cli.env.{SCRUB_VARIABLE}", "has a key of its own", "cli.scrub")
    if config.policy.credentials == "client":
        for name in CREDENTIAL_VARIABLES:
            if name in config.cli.env:
                yield ConfigError(
                    f"cli.env.{name}", "holds a credential, but policy.credentials is client: hello brings it",
                    'no credential variable, or policy.credentials = "server"',
                )  # fmt: skip


def _processes(config: Config) -> Iterator[ConfigError]:
    pool = config.pool
    may_bypass = pool.isolation == "uid" or os.geteuid() != 0 or config.cli.env.get("IS_SANDBOX") == "1"
    yield from mistakes(pool.profiles, may_bypass=may_bypass)
    needed = config.session.max_sessions + pool.process_limit  # each kept directory has one, and each spare's
    if pool.isolation == "uid" and len(pool.user_ids) < needed:
        first, last = pool.uid_range
        yield ConfigError(
            "pool.uid_range", f"found {first} to {last}",
            f"at least {needed} ids, ascending: session.max_sessions, and as many as processes may run",
        )  # fmt: skip
    for key in ("warm", "reserve"):
        total = sum(getattr(profile, key) for profile in pool.profiles.values())
        if total > pool.process_limit:
            yield ConfigError(
                f"pool.profiles.*.{key}", f"found {total} in all, above what may run",
                f"up to {pool.process_limit} in all (pool.max_processes, and pool.memory_budget_mb / {MB_PER_PROCESS})",
            )  # fmt: skip


_AT_MOST = (
    ("turn.first_token_timeout_s", "turn.timeout_s"),
    ("turn.idle_timeout_s", "turn.timeout_s"),
    ("replay.bytes", "replay.total_bytes"),
    ("server.hello_max_bytes", "server.max_message_bytes"),
    ("server.max_unauthenticated_per_ip", "server.max_unauthenticated"),
)


def _deadlines(config: Config, written: set[str]) -> Iterator[ConfigError]:
    for small, large in _AT_MOST:
        if small in written and large in written and _at(config, small) > _at(config, large):
            yield ConfigError(small, f"found {_at(config, small):g}, above {large}", f"up to {_at(config, large):g}")
    server = config.server
    if server.max_message_bytes > server.max_inbound_bytes:  # whoever wrote it: no large message would go through
        yield ConfigError(
            "server.max_inbound_bytes", f"found {server.max_inbound_bytes}, below server.max_message_bytes",
            f"at least {server.max_message_bytes}, or smaller messages",
        )  # fmt: skip


def _at(config: Config, path: str) -> float:
    value: Any = config
    for name in path.split("."):
        value = getattr(value, name)
    return float(value)
