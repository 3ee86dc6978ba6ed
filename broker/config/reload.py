"""What of a configuration that was read again can take effect in a running broker.

Pure.  Caller: ``broker.app``, at SIGHUP.  Every key is in exactly one of the two tables; ``*`` stands for a
profile's name.
"""

from dataclasses import dataclass
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import fields, replace

from broker.config.tree import Config

LIVE: Final = frozenset(
    {
        # Asked at each request, connection or look at the pool.
        "models",
        "server.allowed_origins", "server.allowed_hosts", "server.max_message_bytes", "server.max_inbound_bytes",
        "server.max_unauthenticated", "server.max_unauthenticated_per_ip", "server.send_deadline_s",
        "pool.max_processes", "pool.memory_budget_mb", "pool.spawn_concurrency", "pool.start_timeout_s",
        "pool.queue_timeout_s", "pool.max_waiting", "pool.process_memory_mb",
        "pool.profiles.*.warm", "pool.profiles.*.reserve", "pool.profiles.*.max", "pool.profiles.*.max_age_s",
        "pool.profiles.*.max_rss_mb",
        "session.max_sessions", "session.retain_days", "session.fork_max_mb", "session.fork_max_files",
        "replay.total_bytes", "stop.drain_timeout_s",
        # Held by each session from its beginning: for new ones.
        "pool.bind_timeout_s", "pool.mcp_bind_timeout_s", "session.detach_timeout_s", "session.hibernate_after_s",
        "session.min_resident_s",
        "turn.first_token_timeout_s", "turn.idle_timeout_s", "turn.timeout_s", "turn.permission_timeout_s",
        "turn.queue", "replay.frames", "replay.bytes", "replay.seconds",
        # As a change of tenants.toml: from the next hello on.
        "limits.messages_per_second", "limits.messages_burst", "limits.refused_messages",
        "limits.tenant_messages_per_second", "limits.tenant_connections", "limits.tenant_sessions",
        "limits.tenant_disk_mb",
        "limits.tenant_processes", "limits.tenant_waiting", "limits.tenant_cold_starts_per_minute",
        "policy.credentials", "policy.unscrubbed_secrets", "policy.base_urls", "policy.models",
        "policy.slash_commands", "policy.permission_modes", "policy.session_permission_rules", "policy.options",
        "policy.add_dir_roots", "policy.plugin_roots", "policy.mcp_servers", "policy.mcp_url_prefixes",
        "policy.mcp_stdio", "policy.hooks",
    }
)  # fmt: skip
AT_START: Final = frozenset(
    {
        # Bound to the listening sockets.
        "server.listen", "server.loop", "server.hello_timeout_s", "server.hello_max_bytes", "server.ping_interval_s",
        "server.write_buffer_bytes", "admin.listen",
        # What was tried, or claimed, before the first port was opened.
        "auth.mode", "auth.file", "cli.command", "cli.env", "cli.scrub", "pool.isolation", "pool.uid_range",
        "pool.cgroup",
        "state.dir",
        # What a process is started with; profiles come and go at a start only.
        "pool.profiles.*.model", "pool.profiles.*.tools", "pool.profiles.*.fallback_model",
        "pool.profiles.*.plugin_dirs", "pool.profiles.*.setting_sources", "pool.profiles.*.max_turns",
        "pool.profiles.*.max_budget_usd", "pool.profiles.*.debug", "pool.profiles.*.verbose", "pool.profiles.*.ide",
        "pool.profiles.*.bypass",
        # Sessions wait for their last process by these.
        "stop.eof_grace_s", "stop.term_grace_s",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Plan:
    """What a reload leads to: the configuration to apply, the keys that change with it, and those that would need a
    start.  Profiles that are new or gone are named as a whole."""

    applied: Config
    changed: tuple[str, ...]
    ignored: tuple[str, ...]


def plan(old: Config, new: Config) -> Plan:
    """``old`` with what ``new`` says about the keys that are live."""
    changed: list[str] = []
    ignored: list[str] = []
    applied = _merged(old, new, "", "", changed, ignored)
    return Plan(applied, tuple(changed), tuple(ignored))


def _merged(old: Any, new: Any, path: str, pattern: str, changed: list[str], ignored: list[str]) -> Any:
    """One struct; ``path`` is its dotted name with a dot at its end, ``pattern`` the same with ``*`` for names."""
    values = {}
    for field in fields(old):
        name, before, after = field.name, getattr(old, field.name), getattr(new, field.name)
        key = pattern + name
        if isinstance(before, Struct):
            values[name] = _merged(before, after, f"{path}{name}.", f"{key}.", changed, ignored)
        elif key == "pool.profiles":
            values[name] = _profiles(before, after, f"{path}{name}.", changed, ignored)
        elif before != after and key in LIVE:
            values[name] = after
            changed.append(path + name)
        elif before != after:
            ignored.append(path + name)
    return replace(old, **values)


def _profiles(
    old: dict[str, Any], new: dict[str, Any], path: str, changed: list[str], ignored: list[str]
) -> dict[str, Any]:
    ignored += [path + name for name in sorted(old.keys() ^ new.keys())]
    return {
        name: _merged(profile, new[name], f"{path}{name}.", f"{path}*.", changed, ignored) if name in new else profile
        for name, profile in old.items()
    }
