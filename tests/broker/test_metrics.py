"""Counts, labels and the exposition."""

import re
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from broker.metrics import DISCONNECTS, FAILURES, PHASES, PROTOCOL_ERRORS, TTFT_BUCKETS, UNKNOWN_FRAMES, Metrics
from protocol.codes import Applied, CloseCode, DropReason, ErrorCode, FailureReason, Limit, Start, UpstreamError
from protocol.frames import SessionTotals, TurnCompleted, TurnFailed
from protocol.traces import TRACES


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def series(metrics: Metrics, prefix: str = "broker_") -> set[str]:
    text = metrics.render("")[0].decode()
    return {line.rpartition(" ")[0] for line in text.splitlines() if line.startswith(prefix)}


def test_the_promised_names_are_there() -> None:
    """Every metric of the product's card exists from the start or with its first event."""
    metrics = Metrics()
    metrics.first_token("default", "warm", 0.2)
    metrics.acquired("default", "warm", 0.001)
    metrics.built("2.1.329")
    names = {re.split(r"[{ ]", line)[0] for line in series(metrics)}
    assert {
        "broker_ttft_seconds_bucket", "broker_stream_failures_total", "broker_turns_total", "broker_pool_processes",
        "broker_pool_acquires_total", "broker_queue_wait_seconds_bucket", "broker_connections", "broker_build_info",
        "broker_sessions", "broker_disconnects_total", "broker_protocol_errors_total",
        "broker_cli_frames_dropped_total", "broker_cli_frames_quieted_total", "broker_cli_unknown_frames_total",
        "broker_unknown_fields_total", "broker_cli_questions_total", "broker_limits_refused_total",
        "broker_process_faults_total", "broker_tasks",
    } <= names  # fmt: skip
    assert not any(name.endswith("_created") for name in names)


def test_every_failure_exists_before_it_happens() -> None:
    """All pairs of reason and phase, and all other counters' labels, are zero from the start."""
    metrics = Metrics()
    assert len(FAILURES) == len(FailureReason) + len(UpstreamError)
    for reason in FAILURES:
        for phase in PHASES:
            assert value(metrics, "broker_stream_failures_total", reason=reason, phase=phase) == 0
    for name, reasons in (
        ("broker_disconnects_total", DISCONNECTS), ("broker_protocol_errors_total", PROTOCOL_ERRORS),
        ("broker_cli_frames_dropped_total", tuple(DropReason)),
    ):  # fmt: skip
        assert [value(metrics, name, reason=reason) for reason in reasons] == [0] * len(reasons)
    assert value(metrics, "broker_turns_total", pool="default", outcome="failed") == 0
    assert [value(metrics, "broker_cli_unknown_frames_total", type=name) for name in UNKNOWN_FRAMES] == [0, 0]
    assert {value(metrics, "broker_cli_frames_quieted_total", type=name) for name in TRACES} == {0}
    assert {value(metrics, "broker_limits_refused_total", limit=name) for name in Limit} == {0}


def test_profile_misses_are_counted_by_the_label_they_are_given() -> None:
    """``other`` is there from the start; the pool of unknown profiles is one like the configured ones."""
    metrics = Metrics()
    metrics.profile_missed("97e3b9f3971e")
    metrics.profile_missed("97e3b9f3971e")
    assert value(metrics, "broker_pool_profile_misses_total", hash="97e3b9f3971e") == 2
    assert value(metrics, "broker_pool_profile_misses_total", hash="other") == 0
    assert value(metrics, "broker_pool_processes", pool="other", state="leased") == 0


def completed(error: UpstreamError | None = None, *, stopped: bool = False) -> TurnCompleted:
    return TurnCompleted(
        id="m", subtype="success", is_error=error is not None or stopped, error=error, stopped=stopped, ttft_ms=None,
        queue_ms=0.0, overhead_ms=0.0, duration_ms=0.0, frames=0, usage=None, cost_usd=None,
        total=SessionTotals(),
    )  # fmt: skip


def failed(reason: FailureReason) -> TurnFailed:
    return TurnFailed("m", reason, Applied.UNKNOWN, retryable=False)


def test_a_completed_turn_is_counted_once() -> None:
    """A turn counts at its end, and its time to first token falls into the right buckets."""
    metrics = Metrics(["default", "big"])
    metrics.first_token("big", Start.WARM, 0.3)
    metrics.turn_ended("big", completed(), is_before_first_token=False)
    assert value(metrics, "broker_turns_total", pool="big", outcome="completed") == 1
    assert value(metrics, "broker_ttft_seconds_bucket", pool="big", start="warm", le="0.25") == 0
    assert value(metrics, "broker_ttft_seconds_bucket", pool="big", start="warm", le="0.5") == 1
    assert len(TTFT_BUCKETS) == 22


def test_an_error_told_by_the_result_is_one_failure() -> None:
    """A result with an error is one failed turn and one stream failure, in the phase where it happened."""
    metrics = Metrics()
    metrics.turn_ended("default", completed(UpstreamError.AUTH), is_before_first_token=True)
    metrics.turn_ended("default", completed(UpstreamError.OVERLOADED), is_before_first_token=False)
    name = "broker_stream_failures_total"
    assert value(metrics, name, reason="upstream_auth", phase="before_first_token") == 1
    assert value(metrics, name, reason="upstream_overloaded", phase="after_first_token") == 1
    assert value(metrics, "broker_turns_total", pool="default", outcome="failed") == 2
    assert value(metrics, "broker_turns_total", pool="default", outcome="completed") == 0


def test_what_the_user_stopped_is_no_failure() -> None:
    """A withdrawn message and an interrupted turn are cancelled; a dead process is a failure."""
    metrics = Metrics()
    metrics.turn_ended("default", failed(FailureReason.CANCELLED), is_before_first_token=True)
    metrics.turn_ended("default", completed(stopped=True), is_before_first_token=False)
    metrics.turn_ended("default", failed(FailureReason.CLI_EXITED), is_before_first_token=False)
    name = "broker_stream_failures_total"
    assert value(metrics, name, reason="cancelled", phase="before_first_token") == 0
    assert value(metrics, name, reason="cli_exited", phase="after_first_token") == 1
    assert value(metrics, "broker_turns_total", pool="default", outcome="cancelled") == 2
    assert value(metrics, "broker_turns_total", pool="default", outcome="failed") == 1


@pytest.mark.parametrize(("result", "waited"), [("warm", "assigned"), ("cold", "assigned"), ("timeout", "timeout")])
def test_a_wait_is_counted_by_how_it_ended(result: str, waited: str) -> None:
    """Every request for a process counts, with the time it took."""
    metrics = Metrics()
    metrics.acquired("default", result, 0.002)
    assert value(metrics, "broker_pool_acquires_total", pool="default", result=result) == 1
    assert value(metrics, "broker_queue_wait_seconds_count", pool="default", result=waited) == 1


def test_gauges_follow_their_moves() -> None:
    """Connections and sessions move from state to state and leave nothing behind."""
    metrics = Metrics()
    for move, name in ((metrics.connection_moved, "broker_connections"), (metrics.session_moved, "broker_sessions")):
        move(None, "open")
        move(None, "open")
        move("open", None)
        assert value(metrics, name, state="open") == 1
    metrics.pool_processes("default", "warm", 4)
    assert value(metrics, "broker_pool_processes", pool="default", state="warm") == 4


def foreign(metrics: Metrics, text: str) -> None:
    """Call every method that takes a label, with a text from outside."""
    metrics.first_token(text, text, 1.0)
    metrics.turn_ended(text, failed(FailureReason.INTERNAL), is_before_first_token=True)
    metrics.turn_rejected(text)
    metrics.acquired(text, text, 1.0)
    metrics.pool_processes(text, text, 1)
    metrics.process_started(text, 1.0)
    metrics.connection_moved(text, text)
    metrics.session_moved(text, text)
    metrics.disconnected(text)
    metrics.protocol_error(text)
    metrics.limit_refused(text)
    metrics.cli_frame_dropped(text)
    metrics.cli_frame_unknown(text)
    metrics.cli_frame_quieted(text)


def test_labels_from_outside_do_not_grow_the_exposition() -> None:
    """A thousand foreign names give the series of one: they are all counted as other, and the cache stays small."""
    metrics = Metrics()
    foreign(metrics, "foreign")
    before = series(metrics)
    for number in range(1000):
        foreign(metrics, f"foreign-{number}\n\x00")
    assert series(metrics) == before
    assert "foreign" not in metrics.render("")[0].decode()
    assert value(metrics, "broker_protocol_errors_total", reason="other") == 1001
    assert value(metrics, "broker_cli_unknown_frames_total", type="other") == 1001
    assert value(metrics, "broker_limits_refused_total", limit="other") == 1001
    assert len(metrics._protocol_errors._children) == len(set(PROTOCOL_ERRORS))
    assert len(metrics._limits._children) == len(Limit)


def test_the_whole_exposition_stays_small() -> None:
    """With ten profiles the series of the broker stay in the hundreds."""
    metrics = Metrics([f"p{number}" for number in range(10)])
    for number in range(10):
        for start in Start:
            metrics.first_token(f"p{number}", start, 1.0)
        for result in ("warm", "timeout", "rejected", "cancelled"):
            metrics.acquired(f"p{number}", result, 1.0)
    assert len(series(metrics)) < 3000


def test_two_registries_do_not_mix() -> None:
    """Each Metrics counts for itself."""
    one, two = Metrics(), Metrics()
    one.protocol_error(ErrorCode.BAD_FRAME)
    assert value(one, "broker_protocol_errors_total", reason="bad_frame") == 1
    assert value(two, "broker_protocol_errors_total", reason="bad_frame") == 0


def test_build_info_is_clean() -> None:
    """A version with odd characters is stripped and cut."""
    metrics = Metrics()
    metrics.built("2.1.329\n\x1b[31m" + "x" * 500)
    (line,) = series(metrics, "broker_build_info")
    assert 'cli_version="2.1.329[31mxxx' in line
    assert len(line) < 200


# -- the text --------------------------------------------------------------------------------------------------------


def test_plain_text_by_default() -> None:
    """Without a known Accept the compatibility format is served and parses."""
    body, content_type = Metrics().render("")
    assert content_type == "text/plain; version=0.0.4; charset=utf-8"
    assert "broker_turns" in {family.name for family in parse_text(body.decode())}


def test_openmetrics_when_asked_for() -> None:
    """Prometheus' own Accept header gets OpenMetrics, which parses and ends properly."""
    accept = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3"
    metrics = Metrics()
    metrics.first_token("default", "warm", 1.0)
    body, content_type = metrics.render(accept)
    assert content_type.startswith("application/openmetrics-text; version=1.0.0; charset=utf-8")
    assert body.endswith(b"# EOF\n")
    assert "broker_ttft_seconds" in {family.name for family in parse_openmetrics(body.decode())}  # type: ignore[no-untyped-call]


@given(
    st.text(max_size=80)
    | st.from_regex(r"(application/openmetrics-text|text/plain);\s?version=\S{0,9}(;escaping=\S{0,9})?", fullmatch=True)
)
def test_any_accept_header_is_answered(accept: str) -> None:
    """Whatever a client asks for, it gets an exposition with a content type of one line."""
    body, content_type = METRICS.render(accept)
    assert b"broker_turns_total" in body
    assert "\n" not in content_type
    assert "\r" not in content_type


METRICS = Metrics()


def test_names_follow_the_conventions() -> None:
    """Prefix, base units and ``_total`` as Prometheus wants them; every metric has a help text."""
    for family in Metrics().registry.collect():
        if not family.name.startswith("broker_"):
            continue
        assert family.documentation.endswith(".")
        assert re.fullmatch(r"broker_[a-z_]+", family.name)
        assert not re.search(r"_(ms|milliseconds|minutes|kb|mb|count|sum|bucket|total)$", family.name)
        if family.type == "histogram":
            assert family.name.endswith("_seconds")


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_has_nothing_to_say() -> None:
    """The linter of Prometheus accepts the exposition of our own metrics."""
    metrics = Metrics()
    foreign(metrics, "x")
    metrics.built("1")
    text = "\n".join(line for line in metrics.render("")[0].decode().splitlines() if "broker_" in line) + "\n"
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_close_codes_are_labels_by_name() -> None:
    """Only codes that the broker sends are labels, by their name."""
    assert CloseCode.SLOW_CONSUMER.label in DISCONNECTS
    assert not any(reason.isdigit() for reason in DISCONNECTS)
