"""What the broker counts, and its text for Prometheus.  The only module that knows prometheus_client.

Owner: ``broker.app`` makes the one ``Metrics``; callers: whoever sees the event a method is named after.  Each object
has its own registry, so tests and several brokers in one process do not mix.  Nothing here is called per frame.

Cardinality is bounded: every label has a closed set of values (the configured profiles, a list from ``protocol.codes``,
the first few hashes); anything else is counted as ``other``.  No label ever holds a tenant, a model of a client's
choice, an id or a close code that a client sent.  Label pairs of counters exist from the start, so that ``rate()`` sees
the first failure.  Over 300 lines because the whole vocabulary stands in one place.
"""

import asyncio
import itertools
import platform
from collections.abc import Iterable
from importlib.metadata import version
from typing import Generic, Protocol, Self, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import choose_encoder

from broker import __version__
from protocol.codes import CloseCode, DropReason, ErrorCode, FailureReason, Limit, Start, UpstreamError
from protocol.frames import TurnCompleted, TurnFailed
from protocol.traces import TRACES

OTHER = "other"
TTFT_BUCKETS = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 2.5, 3, 4, 5, 7.5, 10, 15, 20, 30, 60, 120,
)  # fmt: skip
WAIT_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
START_BUCKETS = (0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 5, 7.5, 10, 15, 20, 30, 60)

FAILURES = (*FailureReason, *UpstreamError)
PHASES = ("before_first_token", "after_first_token")
OUTCOMES = ("completed", "failed", "cancelled", "rejected")
STARTS = tuple(Start)
PROCESS_STATES = ("starting", "warm", "leased", "stopping")
ACQUIRED = (Start.WARM, Start.COLD, Start.RESTORED)
ACQUIRE_RESULTS = (*ACQUIRED, "timeout", "cancelled", "rejected")
WAIT_RESULTS = ("assigned", "timeout", "cancelled", "rejected")
CONNECTION_STATES = ("open",)
SESSION_STATES = ("open",)
DISCONNECTS = (*(code.label for code in CloseCode), "client", "ping_flood", "close_deadline", "broker_stopped")
UNKNOWN_FRAMES = ("system", OTHER)
"""A ``system`` frame of an unknown subtype, a frame of an unknown type."""
QUESTION_KINDS = ("can_use_tool", "elicitation", "hook_callback", "mcp_message")
QUESTION_OUTCOMES = ("allowed", "denied", "expired", "withdrawn", "refused")
"""``refused``: by the broker, unasked."""
PROCESS_FAULTS = ("memory", "memory_unknown", "cgroup_make", "cgroup_end", "cgroup_left")
STORE_OPERATIONS = ("accept", "write", "end", "give_up", "keep", "forget")
PROTOCOL_ERRORS = (*ErrorCode, *(code.label for code in CloseCode))


class _Metric(Protocol):
    def labels(self, *values: str) -> Self: ...


M = TypeVar("M", bound=_Metric)


class _Family(Generic[M]):
    """A metric whose children are looked up once; a value outside its label's closed set becomes ``other``."""

    def __init__(self, metric: M, *domains: Iterable[str], create: bool = False) -> None:
        self._metric = metric
        self._domains = tuple(frozenset(map(str, domain)) for domain in domains)
        self._children: dict[tuple[str, ...], M] = {}
        if create:
            for values in itertools.product(*self._domains):
                self(*values)

    def __call__(self, *values: str) -> M:
        child = self._children.get(values)
        if child is not None:
            return child
        bounded = tuple(
            str(value) if value in domain else OTHER for value, domain in zip(values, self._domains, strict=True)
        )
        child = self._metric.labels(*bounded)
        if bounded == values:  # else the cache would grow with what came from outside
            self._children[values] = child
        return child


class Metrics:
    """The broker's registry.  ``pools``: the configured profile names; another name is counted as ``other``."""

    def __init__(self, pools: Iterable[str] = ("default",)) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        pools = sorted({*pools, OTHER})

        def counter(name: str, text: str, labels: list[str], *domains: Iterable[str]) -> _Family[Counter]:
            return _Family(Counter(name, text, labels, registry=registry), *domains, create=True)

        def gauge(name: str, text: str, labels: list[str], *domains: Iterable[str]) -> _Family[Gauge]:
            return _Family(Gauge(name, text, labels, registry=registry), *domains, create=True)

        def histogram(
            name: str, text: str, labels: list[str], buckets: tuple[float, ...], *domains: Iterable[str]
        ) -> _Family[Histogram]:
            return _Family(Histogram(name, text, labels, buckets=buckets, registry=registry), *domains)

        self._ttft = histogram(
            "broker_ttft_seconds", "From the message decoded to its first token written.", ["pool", "start"],
            TTFT_BUCKETS, pools, STARTS,
        )  # fmt: skip
        self._failures = counter(
            "broker_stream_failures_total", "Turns that ended in an error.", ["reason", "phase"], FAILURES, PHASES
        )
        self._turns = counter("broker_turns_total", "Turns, at their end.", ["pool", "outcome"], pools, OUTCOMES)
        self._processes = gauge(
            "broker_pool_processes", "Processes of the CLI.", ["pool", "state"], pools, PROCESS_STATES
        )
        self._acquires = counter(
            "broker_pool_acquires_total", "Requests for a process.", ["pool", "result"], pools, ACQUIRE_RESULTS
        )
        self._waits = histogram(
            "broker_queue_wait_seconds", "From the request for a process to its answer.", ["pool", "result"],
            WAIT_BUCKETS, pools, WAIT_RESULTS,
        )  # fmt: skip
        self._profile_misses = Counter(
            "broker_pool_profile_misses_total", "Wishes for a launch profile that is not configured.", ["hash"],
            registry=registry,
        )  # fmt: skip
        self._profile_misses.labels(OTHER)
        self._lost = counter(
            "broker_pool_processes_lost_total", "Processes dead or silent before they were bound.", ["pool"], pools
        )
        self._starts = histogram("broker_process_start_seconds", "From exec to ready.", ["pool"], START_BUCKETS, pools)
        self._faults = counter("broker_process_faults_total", "Memory, cgroups.", ["fault"], PROCESS_FAULTS)
        self._connections = gauge("broker_connections", "Open sockets.", ["state"], CONNECTION_STATES)
        self._sessions = gauge("broker_sessions", "Sessions in memory.", ["state"], SESSION_STATES)
        self._disconnects = counter(
            "broker_disconnects_total", "Closed sockets; a close code only when the broker sent it.", ["reason"],
            DISCONNECTS,
        )  # fmt: skip
        self._protocol_errors = counter(
            "broker_protocol_errors_total", "What clients asked for and did not get.", ["reason"], PROTOCOL_ERRORS
        )
        self._store_failures = counter(
            "broker_store_failures_total", "What could not be kept in the index of conversations.", ["operation"],
            STORE_OPERATIONS,
        )  # fmt: skip
        self._limits = counter(
            "broker_limits_refused_total", "What was refused because a limit was reached.", ["limit"], Limit
        )
        self._questions = counter(
            "broker_cli_questions_total", "Requests of the CLI that are for clients, at their end.",
            ["kind", "outcome"], QUESTION_KINDS, QUESTION_OUTCOMES,
        )  # fmt: skip
        self._dropped = counter(
            "broker_cli_frames_dropped_total", "Lines of the CLI that were not forwarded.", ["reason"], DropReason
        )
        self._quieted = counter(
            "broker_cli_frames_quieted_total", "Frames of the CLI that only verbose sessions show.", ["type"], TRACES
        )
        self._unknown_frames = counter(
            "broker_cli_unknown_frames_total",
            "Frames of the CLI that are forwarded though nobody knows their type, or their subtype (system).",
            ["type"], UNKNOWN_FRAMES,
        )  # fmt: skip
        self._unknown_fields = Counter(
            "broker_unknown_fields_total", "Unknown fields dropped from frames in the SDK's shape.", registry=registry
        )
        Gauge("broker_tasks", "Tasks of the event loop, whoever owns them.", registry=registry).set_function(_tasks)
        self._build_info = Gauge(
            "broker_build_info", "Always 1.", ["version", "python", "websockets", "cli_version"], registry=registry
        )

    # -- turns --

    def first_token(self, pool: str, start: str, ttft_s: float) -> None:
        """The first token of a turn was written, ``ttft_s`` after its message was decoded."""
        self._ttft(pool, start).observe(ttft_s)

    def turn_ended(self, pool: str, frame: TurnCompleted | TurnFailed, *, is_before_first_token: bool) -> None:
        """A message got its one terminal frame.  An error told by the ``result`` is a failed turn, counted once.

        A withdrawn message and an interrupted turn count as cancelled, not as failures.
        """
        reason = frame.reason if isinstance(frame, TurnFailed) else frame.error
        if reason is FailureReason.CANCELLED or (isinstance(frame, TurnCompleted) and frame.stopped):
            self._turns(pool, "cancelled").inc()
            return
        if reason is not None:
            self._failures(reason.value, "before_first_token" if is_before_first_token else "after_first_token").inc()
        is_failed = reason is not None or (isinstance(frame, TurnCompleted) and frame.is_error)
        self._turns(pool, "failed" if is_failed else "completed").inc()

    def turn_rejected(self, pool: str) -> None:
        """A message was refused before it became a turn (a full queue)."""
        self._turns(pool, "rejected").inc()

    # -- pool --

    def acquired(self, pool: str, result: str, waited_s: float) -> None:
        """A request for a process ended: ``warm``, ``cold``, ``restored``, ``timeout``, ``cancelled``, ``rejected``."""
        self._acquires(pool, result).inc()
        self._waits(pool, "assigned" if result in ACQUIRED else result).observe(waited_s)

    def profile_missed(self, label: str) -> None:
        """A client's options make a profile that nobody configured; ``label`` is its hash, of a bounded set."""
        self._profile_misses.labels(label).inc()

    def process_lost(self, pool: str) -> None:
        """A process that nobody had used was leased, and died or said nothing before it was bound."""
        self._lost(pool).inc()

    def pool_processes(self, pool: str, state: str, count: int) -> None:
        """There are ``count`` processes of ``pool`` in ``state`` now."""
        self._processes(pool, state).set(count)

    def process_started(self, pool: str, seconds: float) -> None:
        """A process answered its readiness probe ``seconds`` after exec."""
        self._starts(pool).observe(seconds)

    def process_fault(self, fault: str) -> None:
        """Something of ``PROCESS_FAULTS`` happened to a process."""
        self._faults(fault).inc()

    # -- sockets and sessions --

    def connection_moved(self, old: str | None, new: str | None) -> None:
        """A socket changed its state; None stands for not open."""
        _move(self._connections, old, new)

    def session_moved(self, old: str | None, new: str | None) -> None:
        """A session changed its state; None stands for not there."""
        _move(self._sessions, old, new)

    def disconnected(self, reason: str) -> None:
        """A socket ended: ``CloseCode.label`` when the broker closed it, else ``client`` or why it was cut."""
        self._disconnects(reason).inc()

    def protocol_error(self, reason: str) -> None:
        """A frame or a connection was refused: an ``ErrorCode``, or ``CloseCode.label``."""
        self._protocol_errors(reason).inc()

    def store_failed(self, operation: str) -> None:
        """Something could not be kept: ``STORE_OPERATIONS``."""
        self._store_failures(operation).inc()

    def limit_refused(self, limit: str) -> None:
        """A message, a socket, a session or a process was refused: ``Limit``, the setting that was reached."""
        self._limits(limit).inc()

    def question_ended(self, kind: str, outcome: str) -> None:
        """A permission prompt, an elicitation, a hook or a message for a client's MCP server was answered or closed."""
        self._questions(kind, outcome).inc()

    def cli_frame_dropped(self, reason: str) -> None:
        """A line of the CLI was not forwarded."""
        self._dropped(reason).inc()

    def cli_frame_unknown(self, frame_type: str) -> None:
        """A frame that ``protocol.cli_frames`` does not list was forwarded; ``system``: one of an unknown subtype."""
        self._unknown_frames(frame_type).inc()

    def cli_frame_quieted(self, name: str) -> None:
        """A frame of ``protocol.traces`` was left out, for want of ``verbose``."""
        self._quieted(name).inc()

    def unknown_fields(self, count: int) -> None:
        """So many unknown fields were dropped from one frame."""
        self._unknown_fields.inc(count)

    # -- the text --

    def built(self, cli_version: str) -> None:
        """Tell the versions that run here."""
        cli = "".join(c for c in cli_version if c.isascii() and c.isprintable())[:64]
        self._build_info.labels(__version__, platform.python_version(), version("websockets"), cli).set(1)

    def render(self, accept: str) -> tuple[bytes, str]:
        """The exposition and its content type, by the ``Accept`` header; plain text when that names nothing known."""
        try:
            encoder, content_type = choose_encoder(accept)
            return encoder(self.registry), content_type
        except (TypeError, ValueError):  # what the library makes of a version that is no version
            encoder, content_type = choose_encoder("")
            return encoder(self.registry), content_type


def _tasks() -> float:
    """Asked while the metrics are rendered: on the loop, or in a program without one."""
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:
        return 0.0


def _move(family: _Family[Gauge], old: str | None, new: str | None) -> None:
    if old is not None:
        family(old).dec()
    if new is not None:
        family(new).inc()
