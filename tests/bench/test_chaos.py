"""``bench chaos``: a few seconds of it, what it exits with, and what only the run itself can find."""

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.__main__ import EXIT_FAILED, main
from bench.chaos import aftermath
from bench.chaos.checker import Checker
from bench.chaos.command import TITLES, judge_flatness
from bench.chaos.plan import canary, steps
from bench.chaos.traveller import Traveller
from bench.chaos.violations import Kind, Violations
from bench.clock import now
from bench.load import Load
from bench.report import Subject
from bench.vitals import Vital, floors, longest, slope
from tests.kit.proxy import fault_proxy
from tests.oracle import Oracle

QUICK = ("--seconds=4", "--tenants=6", "--restart-every=3", "--kill-every=1", "--reload-every=1")


@pytest.mark.slow
def test_a_few_seconds_of_everything_lose_nothing(tmp_path: Path) -> None:
    """Cuts, kills, reloads and a restart: 0 violations, each message ended, and the counts are in the file."""
    file = tmp_path / "result.json"
    assert main(["chaos", *QUICK, "--seed=3", "--output", str(file)]) == 0
    document = json.loads(file.read_text())
    (subject,) = document["subjects"]
    happened = subject["facts"]["happened"]
    assert document["violations"] == []
    assert happened["messages accepted"] == sum(n for name, n in happened.items() if name.startswith("ended: "))
    assert happened["restarts of the broker"] == happened["deed: restart"] >= 1
    assert happened["deed: kill_cli"] >= 1
    assert subject["details"]["vitals"][0]["rss"] > 0


@pytest.mark.slow
def test_any_violation_exits_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Where a mere end of a connection counts as a bug in the log, each is a violation: printed, and the run failed."""
    monkeypatch.setattr(aftermath, "bugs", lambda text, _: re.findall(".*connection[.]closed.*", text))
    assert main(["chaos", "--seconds=1", "--tenants=3", "--restart-every=0", "--kill-every=0"]) == EXIT_FAILED
    assert "VIOLATION logged (broker): " in capsys.readouterr().out


async def stand_in(serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], None]) -> Violations:
    """What a tenant finds who talks to this in place of a broker, for a second."""
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    checker = Checker({"t0": canary(1, 0)})
    load = Load(Subject("stand-in"), TITLES)
    async with server, fault_proxy(port) as proxy:
        url = f"ws://127.0.0.1:{port}/v1/chat/ws"
        seed = next(seed for seed in range(100) if next(steps(seed, 0)).think_s < 0.1)
        traveller = Traveller(0, seed, canary(1, 0), proxy, checker, load.subject, lambda: url, lambda: 1)
        await traveller.run(now() + 1.0)
    return checker.finish()


async def test_a_message_that_never_ends_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that takes connections and says nothing."""
    monkeypatch.setattr("bench.chaos.traveller.DEADLINE_S", 0.2)
    monkeypatch.setattr("bench.chaos.link.OPEN_WITHIN_S", 0.05)
    kept: list[asyncio.StreamWriter] = []
    found = await stand_in(lambda _, writer: kept.append(writer))
    assert found.counts[Kind.HUNG] >= 1
    for writer in kept:
        writer.close()


async def test_a_connection_that_ends_for_no_reason_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that hangs up at once."""
    monkeypatch.setattr("bench.chaos.traveller.DEADLINE_S", 0.2)
    found = await stand_in(lambda _, writer: writer.close())
    assert found.counts[Kind.DROPPED] >= 1


async def test_what_is_left_behind_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, oracle: Oracle) -> None:
    """A process whose environment names the run, which is killed, and a directory too many."""
    monkeypatch.setattr(aftermath, "GONE_WITHIN_S", 0.1)
    for name in ("one", "two"):
        (tmp_path / "state" / "sessions" / name).mkdir(parents=True)
    left = subprocess.Popen(["sleep", "60"], env={"SIMULATOR_LEDGER": str(tmp_path / aftermath.LEDGER), **os.environ})
    found = Violations()
    await aftermath.judge_leftovers(tmp_path, 1, found)
    assert left.wait(5) == -9
    assert [one.kind for one in found.kept] == [Kind.LEFTOVER, Kind.LEFTOVER]
    assert "sleep 60" in found.kept[0].detail
    again = Violations()
    await aftermath.judge_leftovers(tmp_path, 2, again)
    assert again.kept == []


CLOSED = '{"level":"info","event":"connection.closed"}\n'


@pytest.mark.parametrize("expected", [*aftermath.EXPECTED])
def test_what_a_poor_machine_does_is_no_bug(expected: str, tmp_path: Path) -> None:
    """Errors that mean a full disk, say."""
    found = Violations()
    (tmp_path / "broker.log").write_text(f'{CLOSED}{{"level":"error","event":"{expected}"}}\n')
    aftermath.judge_log(tmp_path, found)
    assert found.kept == []


@pytest.mark.parametrize(
    "line",
    [
        "Traceback (most recent call last):",
        '{"level":"error","event":"session.unreadable"}',
        '{"level":"warning","event":"process.gone","exception":[]}',
        '{"level":"error","event":"session.fa',
        f'{{"text":"{canary(1, 0)} says"}}',
    ],
)
def test_what_must_not_be_logged_is_found(line: str, tmp_path: Path) -> None:
    """A traceback, an error that is not expected, an exception whatever it is told as, the words of a tenant."""
    found = Violations()
    (tmp_path / "broker.log").write_text(f"{CLOSED}{line}\n")
    aftermath.judge_log(tmp_path, found)
    assert [(one.kind, one.detail) for one in found.kept] == [(Kind.LOGGED, line)]


def test_an_exception_that_the_broker_logs_is_found(tmp_path: Path) -> None:
    """As it writes it itself, of its own loggers and of the standard library's."""
    with (tmp_path / "broker.log").open("wb") as sink:
        done = subprocess.run([sys.executable, "-c", LOGGING], stderr=sink, check=False)
    assert done.returncode == 0
    found = Violations()
    aftermath.judge_log(tmp_path, found)
    assert [json.loads(one.detail)["event"] for one in found.kept] == ["process.supervisor_failed", "in a callback"]


LOGGING = """
import logging, structlog
from broker import logs
logs.configure("info", json=True)
try:
    1 / 0
except ZeroDivisionError as error:
    structlog.get_logger("one").exception("process.supervisor_failed", slot=1)
    logging.getLogger("asyncio").error("in a callback", exc_info=error)
"""


def vital(at: float, generation: int = 1, **others: int) -> Vital:
    """A look at a broker of a constant size."""
    figures = {"rss": 50 * 2**20, "fds": 20, "threads": 5, "tasks": 7, "children": 1, "folders": 1}
    return Vital(at, generation, **(figures | others))


def test_growth_is_found() -> None:
    """Memory over an hour, descriptors and tasks at rest, latency; each is named."""
    found = Violations()
    judge_flatness(found, [vital(0), vital(60)], [50.0, 70.0, 56.0], 3.0, 1.1)
    assert found.kept == []
    judge_flatness(found, [vital(0), vital(60, fds=21, tasks=8)], [50.0, 50.0, 58.0], 3.0, 1.3)
    details = [one.detail for one in found.kept]
    assert [one.kind for one in found.kept] == [Kind.DRIFT] * 4
    assert [detail.split()[0] for detail in details] == ["memory", "p99", "fds:", "tasks:"]


def test_the_slope_is_that_of_the_longest_life() -> None:
    """Least squares over one broker's samples, without its warm-up; another broker's are left out."""
    samples = [vital(at, 1) for at in range(10)] + [vital(at, 3, rss=at * 2**20) for at in range(10, 110)]
    life = longest(samples)
    assert {one.generation for one in life} == {3}
    assert life[0].at == pytest.approx(10 + 99 / 4, abs=1)
    assert slope([(one.at, one.rss / 2**20) for one in life]) == pytest.approx(1.0)
    assert slope([]) == slope([(1.0, 5.0)]) == 0.0
    assert longest([]) == []
    assert floors(samples) == [pytest.approx(value, abs=2) for value in (35, 60, 85)]
    assert floors([]) == []
