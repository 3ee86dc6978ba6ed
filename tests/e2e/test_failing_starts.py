"""A CLI that does not start: for good, every other time, gone, forbidden, no program, too slow; and that comes back."""

import os
import signal
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from tests.kit.broker import ROOT, Broker, running_broker
from tests.kit.cgroups import cgroups_of
from tests.kit.client import Frame, connected
from tests.kit.serving import program
from tests.soak import LONG_S, size
from tests.waiting import eventually

HEALTHY = f"""export PYTHONPATH={ROOT} CLAUDE_CODE_OAUTH_TOKEN=simulated
exec {sys.executable} -S -m simulator.cli "$@"
"""
HALF = 'n=$(cat "$0.n" 2>/dev/null || echo 0); echo $((n + 1)) > "$0.n"; [ $((n % 2)) = 1 ] || exit 3\n' + HEALTHY
OPEN_S = float(size(5, 60))
MOST_PROBES = 12
"""In a minute."""
CONFIG: dict[str, Any] = {
    "cli": {"scrub": "off"},
    "pool": {"start_timeout_s": 1, "profiles": {"default": {"warm": 0}}},
    "session": {"detach_timeout_s": 0},
    "stop": {"eof_grace_s": 0.1, "term_grace_s": 0.1},
}
HELLO = {"options": {"credentials": {"oauth_token": "simulated"}}}
FAULTS = ("exit", "missing", "EACCES", "ENOEXEC", "slow")


def mend(cli: Path) -> None:
    """Make it the program that works, in one step: a start sees the old one or this."""
    new = Path(program(cli.with_suffix(".new"), HEALTHY))
    new.replace(cli)


def break_(cli: Path, fault: str) -> None:
    """Make it fail from the next start on."""
    match fault:
        case "exit":
            program(cli, "exit 3")
        case "slow":
            program(cli, "exec sleep 60")
        case "missing":
            cli.unlink()
        case "EACCES":
            cli.chmod(0o600)
        case "ENOEXEC":
            cli.write_bytes(b"\x7fELF no program")
        case _:
            raise AssertionError(fault)


@pytest.fixture
def cli(tmp_path: Path) -> Path:
    """A program of the test's own that works."""
    path = tmp_path / "claude"
    mend(path)
    return path


async def refused(broker: Broker) -> tuple[float, Frame]:
    """How long it takes to be turned away, and the error."""
    async with connected(broker.url) as client:
        began = time.monotonic()
        with pytest.raises(ConnectionClosed):
            await client.hello(**HELLO)
        took = time.monotonic() - began
        assert await client.closed() == 4004
        return took, client.frames[-1]


async def test_a_start_that_fails_once_costs_a_moment(tmp_path: Path, cli: Path) -> None:
    """Gone, forbidden, no program, ended at once: it is tried again, and who waits is served once it works."""
    async with running_broker(tmp_path / "broker", CONFIG, cli=str(cli)) as broker:
        for number, fault in enumerate(FAULTS[:4], 1):
            break_(cli, fault)
            async with connected(broker.url) as client:
                await client.send({"type": "broker.hello", **HELLO})
                await eventually(lambda: len(broker.log_events("process.start_failed")) == number, 10)  # noqa: B023
                mend(cli)
                await client.until_type("broker.welcome")
                assert (await client.turn("hello"))["type"] == "broker.turn_completed"
            await broker.wait_pool(leased=0, starting=0, stopping=0)
        assert broker.descendants() == []
        assert cgroups_of(broker.state) == []
        sessions = broker.state / "sessions"
        await eventually(lambda: len(list(sessions.iterdir())) == 4)  # of the conversations; none of a failed start
        assert not broker.log_events("pool.breaker_open")


@pytest.mark.timeout(LONG_S)
async def test_a_cli_that_starts_every_other_time_serves_everybody(tmp_path: Path, cli: Path) -> None:
    """Each tenant waits for one more start; the breaker stays closed."""
    async with running_broker(tmp_path / "broker", CONFIG, cli=str(cli)) as broker:
        program(cli, HALF)
        for _ in range(size(2, 50)):
            async with connected(broker.url, hello=HELLO) as client:
                assert (await client.turn("hello"))["type"] == "broker.turn_completed"
        failed = len(broker.log_events("process.start_failed"))
        print(f"{size(2, 50)} tenants served, {failed} starts failed")
        assert failed > 0
        assert not broker.log_events("pool.breaker_open")


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.timeout(2 * LONG_S)
@pytest.mark.parametrize("fault", FAULTS)
async def test_an_open_breaker_refuses_quickly_and_closes_again(fault: str, tmp_path: Path, cli: Path) -> None:
    """Five failures open it; then refusals at once, few probes, little work; and service again after the next probe."""
    config = CONFIG | {"pool": {"start_timeout_s": 1, "profiles": {"default": {"warm": 1}}}}
    async with running_broker(tmp_path / "broker", config, cli=str(cli)) as broker:
        async with connected(broker.url, hello=HELLO) as client:  # before anybody came the answer is HTTP 503
            assert (await client.turn("hello"))["type"] == "broker.turn_completed"
        await broker.wait_pool(warm=1, leased=0, starting=0, stopping=0)
        break_(cli, fault)
        for process in broker.descendants():
            os.kill(process.pid, signal.SIGKILL)
        broker.expects("pool.breaker_open")
        await eventually(lambda: broker.log_events("pool.breaker_open"), 60)
        began, cpu, failed = time.monotonic(), broker.cpu_s, len(broker.log_events("process.start_failed"))
        took: list[float] = []
        error: Frame = {}
        while time.monotonic() - began < OPEN_S:
            seconds, error = await refused(broker)
            took.append(seconds)
            at = time.monotonic()
            await eventually(lambda: time.monotonic() - at > 0.1)  # noqa: B023
        probes = len(broker.log_events("process.start_failed")) - failed
        busy = (broker.cpu_s - cpu) / OPEN_S
        mend(cli)
        mended, bound = time.monotonic(), error["retry_after_ms"] / 1000 + 5
        await eventually(lambda: broker.pool()["warm"] == 1, bound + 10)
        back = time.monotonic() - mended
        async with connected(broker.url, hello=HELLO) as client:
            assert (await client.turn("hello"))["type"] == "broker.turn_completed"
        took.sort()
        print(f"{fault}: {len(took)} refused, p50 {statistics.median(took) * 1e3:.1f} ms, "
              f"p99 {took[len(took) * 99 // 100] * 1e3:.1f} ms, {probes} probes in {OPEN_S:g} s, "
              f"{busy:.1%} of a core, back after {back:.1f} s (bound {bound:.1f})")  # fmt: skip
        assert took[-1] < 1
        assert probes <= MOST_PROBES
        assert back < bound
        assert not [process for process in broker.descendants() if process.state == "Z"]
