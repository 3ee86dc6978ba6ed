"""What of a conversation outlives the broker: who it is, where it lies, what its processes are told, but no secret.

Pure.  Callers: ``broker.sessions.entry`` makes records, ``broker.sessions.registry`` takes conversations up from them.
Credentials, MCP servers (whose headers, variables and addresses may be secret) and hooks are in memory alone: whoever
comes back brings them again.
"""

from typing import Any, Literal

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from broker.config.launch_profile import SpawnOptions
from broker.options.bound import Bound
from protocol.controls import DECODE_ERRORS
from protocol.frames import SessionTotals
from protocol.options import Agent, Permissions

PLAIN = (
    "model", "permission_mode", "max_thinking_tokens", "max_output_tokens", "betas", "effort", "output_style",
    "allowed_tools", "disallowed_tools", "add_dirs", "rules", "initialize_by", "spawn", "tells_debug", "is_paid",
)  # fmt: skip
"""Fields of ``Bound`` that are kept as they are."""


class Kept(Struct, frozen=True, omit_defaults=True):
    """``Bound`` without its secrets."""

    model: str | None = None
    permission_mode: str | None = None
    max_thinking_tokens: int | None = None
    max_output_tokens: int | None = None
    betas: list[str] | None = None
    effort: str | None = None
    output_style: str | None = None
    allowed_tools: list[str] | None = None
    disallowed_tools: list[str] | None = None
    add_dirs: list[str] | None = None
    rules: Permissions = Permissions()
    initialize_by: Literal["broker", "client"] = "broker"
    spawn: SpawnOptions = SpawnOptions()
    tells_debug: bool = False
    is_paid: bool = False
    initialize: dict[str, Any] = {}
    agents: dict[str, Agent] | None = None


class Record(Struct, frozen=True, omit_defaults=True):
    """One conversation.  Times are seconds since 1970; ``mark`` as in ``Turns``, ``fork_of`` as in ``Again``."""

    directory: str
    cli_session_id: str
    created_at: float
    last_active: float
    fork_of: str | None = None
    mark: str = ""
    has_written: bool = False
    total: SessionTotals = SessionTotals()
    bound: Kept = Kept()


_decoder = msgspec.json.Decoder(Record)


def encode(record: Record) -> bytes:
    """As it is stored."""
    return msgspec.json.encode(record)


def decode(data: bytes) -> Record | None:
    """None for what no broker of this version has written."""
    try:
        return _decoder.decode(data)
    except DECODE_ERRORS:
        return None


def kept(bound: Bound) -> Kept:
    """What of ``bound`` may lie on disk."""
    agents = bound.initialize.get("agents")
    return Kept(
        **{name: getattr(bound, name) for name in PLAIN},
        initialize={name: value for name, value in bound.initialize.items() if name != "agents"},
        agents=None if agents is None else {name: _without_servers(agent) for name, agent in agents.items()},
    )


def _without_servers(agent: Agent) -> Agent:
    """Names stay, what may hold a secret goes."""
    servers = [server for server in agent.mcpServers or [] if isinstance(server, str)]
    return replace(agent, mcpServers=servers) if agent.mcpServers else agent


def take_up(kept: Kept, bound: Bound) -> None:
    """Let ``bound``, of a conversation that is new to this broker, hold what was kept.

    A client's own ``initialize`` is awaited again: with it come its hooks, which guard tools.
    """
    for name in PLAIN:
        setattr(bound, name, getattr(kept, name))
    bound.initialize = dict(kept.initialize) | ({} if kept.agents is None else {"agents": kept.agents})
    bound.is_initialize_known = kept.initialize_by == "broker"
