"""What holds for every test: the house oracle, the loopback-only promise, and that no skip goes unnoticed.

``tests/run`` sets LOOPBACK_ONLY in its network namespace: then any other interface that is up fails the run.  Elsewhere
the tests marked ``real_cli`` and ``browser`` are skipped, because what they start might call home.  With ``CI=true`` a
skip is a failure: on the machine that decides, nothing may be missing.
"""

import fcntl
import os
import socket
import struct
from collections import defaultdict
from collections.abc import Generator
from typing import Final, TypeVar

import pytest

pytest_plugins = ["tests.oracle", "pytester"]

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)

NEEDS_LOOPBACK_ONLY: Final = ("real_cli", "browser")
_SIOCGIFFLAGS: Final = 0x8913
_IFF_UP: Final = 0x1


def interfaces_up() -> list[str]:
    """Names of the network interfaces of this namespace that are up (/sys may still show those of another one)."""
    up = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            answer = fcntl.ioctl(probe, _SIOCGIFFLAGS, struct.pack("16s16x", name.encode()))
            if struct.unpack_from("H", answer, 16)[0] & _IFF_UP:
                up.append(name)
    return up


def is_ci() -> bool:
    """Whether this machine decides about a change."""
    return os.environ.get("CI") == "true"


@pytest.fixture(scope="session", autouse=True)
def _loopback_only() -> None:
    if os.environ.get("LOOPBACK_ONLY") and (up := interfaces_up()) != ["lo"]:
        pytest.fail(f"only lo may be up, but these are: {', '.join(up) or 'none'}", pytrace=False)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Keep what could reach the network inside the namespace."""
    if not os.environ.get("LOOPBACK_ONLY") and any(item.get_closest_marker(name) for name in NEEDS_LOOPBACK_ONLY):
        pytest.skip("needs the loopback-only namespace: start it with tests/run")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A skipped test fails where nothing may be missing."""
    report = yield
    return _refuse_skip(report)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a module that skips itself."""
    report = yield
    return _refuse_skip(report)


def _refuse_skip(report: Report) -> Report:
    if is_ci() and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, and with CI=true nothing may be missing: {_reason(report)}"
    return report


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    # (file, line, reason) for a skip.
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return text.removeprefix("Skipped: ")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name every skip and its reason."""
    reasons: dict[str, list[str]] = defaultdict(list)
    for report in terminalreporter.getreports("skipped"):
        reasons[_reason(report)].append(report.nodeid)
    if reasons:
        terminalreporter.section("skipped")
    for reason, names in sorted(reasons.items()):
        terminalreporter.write_line(f"{len(names)} x {reason}")
        for name in names:
            terminalreporter.write_line(f"    {name}")
