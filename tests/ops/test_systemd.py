"""The units for systemd: systemd itself reads them without a complaint, and they keep the broker's promises."""

import re
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

from broker.config.tree import Config, endpoint
from broker.drain import GIVE_UP_AFTER_S
from broker.errors import EXIT_CONFIG, EXIT_NO_CLI
from broker.sockets.listeners import ADMIN

UNITS = Path(__file__).resolve().parents[2] / "ops" / "systemd"
TOO_OLD = "Failed to parse service type, ignoring: notify-reload"
"""What systemd before 253 says; the unit's first lines say what to write there."""


def unit(name: str) -> dict[str, list[str]]:
    """The values of each key, ``Section.Key``; as systemd reads them, a key may come twice."""
    found: dict[str, list[str]] = defaultdict(list)
    section = ""
    for line in (UNITS / name).read_text().splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found[f"{section}.{key}"].append(value)
    return found


def test_systemd_reads_them(tmp_path: Path) -> None:
    """``systemd-analyze verify``, where that is installed, has nothing to say, once the program exists."""
    analyze = shutil.which("systemd-analyze")
    if analyze is None:  # the keys are checked below, all the same
        return
    for path in UNITS.iterdir():
        text = re.sub(r"(?m)^ExecStart=\S+", f"ExecStart={shutil.which('true')}", path.read_text())
        (tmp_path / path.name).write_text(text)
    names = [str(tmp_path / path.name) for path in sorted(UNITS.iterdir())]
    end = subprocess.run([analyze, "verify", *names], capture_output=True, text=True, timeout=50, check=False)
    said = [line for line in (end.stdout + end.stderr).splitlines() if TOO_OLD not in line and str(tmp_path) in line]
    assert (end.returncode, said) == (0, [])


def test_the_service_keeps_the_brokers_promises() -> None:
    """It is told when the broker is ready, waits as long as a drain may take, and hands the socket over."""
    service = unit("broker.service")
    assert service["Service.Type"] == ["notify-reload"]
    assert service["Service.Sockets"] == service["Unit.Requires"] == ["broker.socket"]
    assert service["Service.KillMode"] == ["mixed"]
    longest = Config().stop.drain_timeout_s + GIVE_UP_AFTER_S
    assert longest < float(service["Service.TimeoutStopSec"][0]) < longest + 5
    assert set(service["Service.RestartPreventExitStatus"][0].split()) == {str(EXIT_CONFIG), str(EXIT_NO_CLI)}
    assert service["Service.Delegate"] == ["yes"]
    assert service["Service.ExecStart"][0].split()[1:3] == ["serve", "--config"]


def test_the_socket_is_the_public_listener() -> None:
    """At the address that the broker would bind itself, under a name that is not the admin listener's."""
    sockets = unit("broker.socket")
    assert [endpoint(value) for value in sockets["Socket.ListenStream"]] == [endpoint(Config().server.listen)]
    assert sockets["Socket.FileDescriptorName"] != [ADMIN]
    assert "Socket.Accept" not in sockets
