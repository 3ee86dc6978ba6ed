"""How much one connection and one tenant may ask for: ``[limits]`` of the configuration, and of one tenant in
``tenants.toml``.

Owner: none, a ``Limits`` is immutable.  It is judged by in ``broker.pool.limits`` and ``broker.pool.quotas``; every
refusal names the key and its value.
"""

from typing import Annotated

from msgspec import Meta, Struct

from broker.config.types import Count, says

Rate = Annotated[float, Meta(gt=0, le=1_000_000)]


class Limits(Struct, frozen=True, forbid_unknown_fields=True):
    """What is refused above it; null: no limit.  ``tenants.toml`` may override it per tenant."""

    messages_per_second: Annotated[Rate, says("User messages of one connection, in the long run.")] = 20
    messages_burst: Annotated[Count, says("User messages that one connection may send at once.")] = 40
    refused_messages: Annotated[
        Annotated[int, Meta(ge=1, le=100_000)], says("Refused messages in 10 s; one more closes the connection.")
    ] = 1000
    tenant_messages_per_second: Annotated[
        Rate | None, says("User messages of one tenant, over all of its connections; two seconds' worth at once.")
    ] = None
    tenant_connections: Annotated[Count | None, says("Open sockets of one tenant.")] = None
    tenant_sessions: Annotated[Count | None, says("Conversations of one tenant that are kept.")] = None
    tenant_disk_mb: Annotated[
        Count | None, says("Megabytes on disk of one tenant's conversations, from which on none begins.")
    ] = None
    tenant_processes: Annotated[Count | None, says("Processes that one tenant has or waits for.")] = None
    tenant_waiting: Annotated[
        Annotated[int, Meta(ge=0, le=1_000_000)] | None, says("Places of one tenant in the queue for a process.")
    ] = None
    tenant_cold_starts_per_minute: Annotated[
        Annotated[int, Meta(ge=1, le=100_000)] | None, says("Wishes of one tenant, in 60 s, that no warm spare met.")
    ] = None
