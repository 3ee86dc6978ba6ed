"""A broker in its own process, on port 0, with a configuration of the test's own.

Callers: the end-to-end tests: ``async with running_broker(tmp_path, ...) as broker``, or ``started_broker`` without an
event loop, for a broker that the tests of one module share (tell it to the oracle: ``oracle.allow(pid=broker.pid)``).
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.broker_log import bugs
from tests.kit.cgroups import check_cgroups
from tests.processes import Process, process_table, tree
from tests.waiting import eventually, eventually_sync

ROOT = Path(__file__).resolve().parents[2]
START_DEADLINE_S = 40.0
STOP_DEADLINE_S = 30.0


@dataclass
class Broker:
    """A running broker.  ``log`` and ``ledger`` are files; ``state`` its state directory."""

    popen: "subprocess.Popen[bytes]"
    log: Path
    ledger: Path
    state: Path
    port: int = 0
    admin: int = 0
    returncode: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    expected: set[str] = field(default_factory=set)
    """Events that may tell of an error or an exception; anything else fails the test when the broker ends."""

    @property
    def pid(self) -> int:
        """The broker's own process."""
        return self.popen.pid

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"ws://127.0.0.1:{self.port}/v1/chat/ws"

    def get(self, path: str, *, admin: bool = False, headers: Mapping[str, str] | None = None) -> tuple[int, bytes]:
        """A plain GET; status and body.  Blocking, at most 5 s."""
        url = f"http://127.0.0.1:{self.admin if admin else self.port}{path}"
        request = urllib.request.Request(url, headers=dict(headers or {}))
        try:
            with urllib.request.urlopen(request, timeout=5) as response:  # noqa: S310
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    def json(self, path: str) -> Any:
        """The body of a plain GET that answers 200."""
        status, body = self.get(path)
        assert status == 200, (status, body)
        return json.loads(body)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples of ``name`` whose labels include ``labels``; 0.0 when there is none."""
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        total = 0.0
        for line in self.get("/metrics", admin=True)[1].decode().splitlines():
            head, _, value = line.rpartition(" ")
            if head.partition("{")[0] == name and all(label in head for label in wanted):
                total += float(value)
        return total

    def pool(self, profile: str = "default") -> dict[str, int]:
        """Processes by state."""
        found: dict[str, int] = json.loads(self.get("/health")[1])["pool"][profile]
        return found

    async def wait_pool(self, within_s: float = 30.0, profile: str = "default", **counts: int) -> None:
        """Until there are that many processes in each state named: ``wait_pool(warm=2, leased=0)``."""
        await eventually(lambda: counts.items() <= self.pool(profile).items(), within_s)

    async def wait_spares(self, count: int, within_s: float = 30.0) -> None:
        """Until ``count`` spares are warm and nothing is starting or stopping."""
        await self.wait_pool(within_s, warm=count, starting=0, stopping=0)

    def log_text(self) -> str:
        """Everything that the broker has logged."""
        return self.log.read_text()

    def expects(self, *events: str) -> None:
        """These may tell of an error or an exception in the log."""
        self.expected.update(events)

    def bugs(self) -> list[str]:
        """The log lines that tell of an exception or an error that nobody expects."""
        return bugs(self.log_text(), self.expected)

    def log_events(self, event: str) -> list[dict[str, Any]]:
        """The log lines of one event."""
        lines = (json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{"))
        return [line for line in lines if line.get("event") == event]

    def ledger_rows(self, direction: str | None = None) -> list[dict[str, Any]]:
        """What the simulated CLIs wrote down (``in``, ``out``, ``meta``); see ``tests.kit.ledger``."""
        if not self.ledger.exists():
            return []
        # A last row without its line end is still being written.
        lines = self.ledger.read_bytes().split(b"\n")[:-1]
        rows = [json.loads(line) for line in lines]
        return [row for row in rows if direction is None or row["dir"] == direction]

    @property
    def cpu_s(self) -> float:
        """Processor time of the broker itself, its children not included; seconds."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def descendants(self) -> list[Process]:
        """Every process below the broker, itself not included."""
        table = process_table()
        return [table[pid] for pid in tree({self.pid}, table) - {self.pid} if pid in table]

    async def stop(self, number: int = signal.SIGTERM, within_s: float = STOP_DEADLINE_S) -> int:
        """Send a signal and wait for the exit code."""
        if self.returncode is None:
            self.popen.send_signal(number)
        return await self.ended(within_s)

    async def ended(self, within_s: float = STOP_DEADLINE_S) -> int:
        """Wait for the exit code of a broker that was told to end."""
        await eventually(lambda: self.popen.poll() is not None, within_s)
        self.returncode = self.popen.returncode
        assert self.returncode is not None
        return self.returncode


def toml(tree_: Mapping[str, Any], prefix: str = "") -> str:
    """A nested mapping as TOML text: enough for configurations."""
    plain = [
        f"{json.dumps(key)} = {json.dumps(value)}" for key, value in tree_.items() if not isinstance(value, Mapping)
    ]
    text = "\n".join(plain) + "\n"
    for key, value in tree_.items():
        if isinstance(value, Mapping):
            name = f"{prefix}.{json.dumps(key)}" if prefix else json.dumps(key)
            text += f"[{name}]\n" + toml(value, name)
    return text


def configuration(state: Path, ledger: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """The test's configuration over the kit's: ports 0, short graces, a ledger, everything below the test's folder."""
    base: dict[str, Any] = {
        "server": {"listen": "127.0.0.1:0"},
        "admin": {"listen": "127.0.0.1:0"},
        "state": {"dir": str(state)},
        "stop": {"eof_grace_s": 2, "term_grace_s": 2, "drain_timeout_s": 5},
        "cli": {"env": {"SIMULATOR_LEDGER": str(ledger)}},
        "pool": {"profiles": {"default": {"warm": 2}}},
    }
    _merge(base, config)
    return base


def _merge(into: dict[str, Any], other: Mapping[str, Any]) -> None:
    for key, value in other.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def _spawn(
    folder: Path,
    config: Mapping[str, Any] | None,
    cli: str,
    log_level: str,
    environment: Mapping[str, str] | None,
    prefix: Sequence[str] = (),
    pass_fds: Sequence[int] = (),
) -> tuple[Broker, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    ports, log, ledger, state = folder / "ports.json", folder / "broker.log", folder / "ledger.jsonl", folder / "state"
    ports.unlink(missing_ok=True)
    file = folder / "broker.toml"
    file.write_text(toml(configuration(state, ledger, config or {})))
    argv = [sys.executable, "-m", "broker", "serve", "--config", str(file), "--cli", cli, "--port-file", str(ports)]
    with log.open("wb") as sink:
        popen = subprocess.Popen(
            [*prefix, *argv, "--log-level", log_level],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **(environment or {})},
            pass_fds=pass_fds,
        )
    return Broker(popen, log, ledger, state), ports


def _opened(broker: Broker, ports: Path) -> bool:
    """Whether the ports are open; fails when the broker has ended instead."""
    assert broker.popen.poll() is None, f"the broker ended with {broker.popen.returncode}: {broker.log_text()[-2000:]}"
    if not ports.exists():
        return False
    found = json.loads(ports.read_text())
    broker.port, broker.admin = found["listen"], found["admin"]
    return True


def _end(broker: Broker) -> None:
    _stop(broker)
    found = "\n".join(broker.bugs())
    assert not found, f"the broker's log tells of errors: {found[:4000]}"


def _stop(broker: Broker) -> None:
    code = broker.popen.poll()
    if code is not None:
        check_cgroups(broker.state, is_clean=code == 0)
        assert broker.returncode == code, f"the broker ended by itself with {code}: {broker.log_text()[-4000:]}"
        return
    broker.popen.send_signal(signal.SIGTERM)
    try:
        broker.popen.wait(STOP_DEADLINE_S)
    except subprocess.TimeoutExpired:
        broker.popen.kill()
        broker.popen.wait()
        raise AssertionError(f"the broker did not end: {broker.log_text()[-4000:]}") from None
    check_cgroups(broker.state, is_clean=broker.popen.returncode == 0)


@asynccontextmanager
async def running_broker(
    folder: Path,
    config: Mapping[str, Any] | None = None,
    *,
    cli: str = "simulated",
    wait_ready: bool = True,
    log_level: str = "info",
    environment: Mapping[str, str] | None = None,
    prefix: Sequence[str] = (),
    pass_fds: Sequence[int] = (),
) -> AsyncIterator[Broker]:
    """Start a broker and end it: SIGTERM, then SIGKILL after ``STOP_DEADLINE_S`` (which fails the test).  So does an
    exception or an error in its log, but for the events of ``Broker.expects``.

    ``prefix`` stands before its command line; it must end in an ``exec`` of the rest.  ``pass_fds`` are inherited.
    """
    broker, ports = _spawn(folder, config, cli, log_level, environment, prefix, pass_fds)
    try:
        await eventually(lambda: _opened(broker, ports), START_DEADLINE_S)
        if wait_ready:
            await eventually(lambda: broker.get("/readyz")[0] == 200, START_DEADLINE_S)
        yield broker
    finally:
        await asyncio.to_thread(_end, broker)


@contextmanager
def started_broker(
    folder: Path, config: Mapping[str, Any] | None = None, *, cli: str = "simulated", log_level: str = "info"
) -> Iterator[Broker]:
    """The same without an event loop, ready when it is yielded: for a fixture that many tests share."""
    broker, ports = _spawn(folder, config, cli, log_level, None)
    try:
        eventually_sync(lambda: _opened(broker, ports), START_DEADLINE_S)
        eventually_sync(lambda: broker.get("/readyz")[0] == 200, START_DEADLINE_S)
        yield broker
    finally:
        _end(broker)
