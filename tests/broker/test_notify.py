"""What a supervisor hears, over a real datagram socket."""

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.notify import Notify

PID = 4711


@pytest.fixture(params=["path", "abstract"])
def supervisor(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """A socket that listens, and its address as ``NOTIFY_SOCKET`` spells it."""
    address = str(tmp_path / "notify") if request.param == "path" else f"@notify-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(address.replace("@", "\0"))
        sock.settimeout(5)
        yield sock, address


def heard(sock: socket.socket) -> list[str]:
    """The lines of the next message."""
    return sock.recv(4096).decode().split("\n")


def test_what_is_told(supervisor: tuple[socket.socket, str]) -> None:
    """One datagram each, with its status as one line."""
    sock, address = supervisor
    notify = Notify.take({"NOTIFY_SOCKET": address}, PID)
    notify.ready("serving")
    assert heard(sock) == ["READY=1", "STATUS=serving"]
    notify.stopping("draining\nREADY=1")
    assert heard(sock) == ["STOPPING=1", "STATUS=draining READY=1"]
    notify.status("x" * 1000)
    assert heard(sock) == ["STATUS=" + "x" * 200]
    notify.alive()
    assert heard(sock) == ["WATCHDOG=1"]
    before = time.monotonic_ns() // 1000
    notify.reloading("reading")
    kind, when, _ = heard(sock)
    assert kind == "RELOADING=1"
    assert before <= int(when.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000


@pytest.mark.parametrize(
    ("environ", "watchdog_s"),
    [
        ({"WATCHDOG_USEC": "3000000"}, 3.0), ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": str(PID)}, 0.5),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, 0.0), ({"WATCHDOG_USEC": "soon"}, 0.0), ({}, 0.0),
    ],
)  # fmt: skip
def test_who_is_watched(environ: dict[str, str], watchdog_s: float) -> None:
    """As often as it is asked for, and only when this process is meant; no variable is left for a child."""
    environ = environ | {"NOTIFY_SOCKET": "/run/notify", "PATH": "/bin"}
    assert Notify.take(environ, PID) == Notify("/run/notify", watchdog_s)
    assert environ == {"PATH": "/bin"}


@pytest.mark.parametrize("address", ["", "relative", "/nowhere/notify", "@nobody-listens-here", "/" + "x" * 200])
def test_nobody_to_tell(address: str) -> None:
    """Nothing happens, and nothing fails."""
    Notify.take({"NOTIFY_SOCKET": address}, PID).ready("serving")


def test_a_supervisor_that_does_not_read_holds_up_nothing(supervisor: tuple[socket.socket, str]) -> None:
    """Its queue is full: the rest is lost."""
    notify = Notify(supervisor[1])
    for _ in range(5000):
        notify.alive()
