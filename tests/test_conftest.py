"""What conftest promises: the namespace is checked, every skip is named, and none passes on a CI machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import interfaces_up

ROOT = Path(__file__).resolve().parent.parent
UNSHARE = ["unshare", "-n" if os.geteuid() == 0 else "-rn"]

SKIPPING = """
import pytest

def test_missing():
    pytest.skip("the component is missing")

@pytest.mark.browser
def test_in_a_browser():
    pass

@pytest.mark.xfail(strict=True, reason="known")
def test_known():
    assert False
"""
INI = """
[pytest]
asyncio_default_fixture_loop_scope = function
markers = browser: as in pyproject.toml
"""


@pytest.fixture
def inner(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A pytest run of its own with our conftest, outside the runner and not on a CI machine."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("LOOPBACK_ONLY", raising=False)
    pytester.makeini(INI)
    pytester.makepyfile(SKIPPING)
    return pytester


def run(inner: pytest.Pytester, *names: str) -> pytest.RunResult:
    return inner.runpytest_subprocess("-p", "tests.conftest", "-p", "no:cacheprovider", *names)


def test_the_summary_names_every_skip_and_its_reason(inner: pytest.Pytester) -> None:
    """Skips are listed by reason near the end; a browser test does not run outside the namespace."""
    result = run(inner)
    result.assert_outcomes(skipped=2, xfailed=1)
    result.stdout.fnmatch_lines(
        [
            "*= skipped =*",
            "1 x needs the loopback-only namespace: start it with tests/run",
            "    *::test_in_a_browser",
            "1 x the component is missing",
            "    *::test_missing",
            "*= 2 skipped, 1 xfailed *",
        ]
    )


def test_on_a_ci_machine_a_skip_is_a_failure(inner: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """With CI=true a test that skips itself and a module that does both fail and say why."""
    monkeypatch.setenv("CI", "true")
    inner.makepyfile(test_whole="import pytest\npytest.skip('all of it is missing', allow_module_level=True)\n")
    result = run(inner, "--continue-on-collection-errors")
    result.assert_outcomes(failed=1, errors=2, xfailed=1)  # setup skips count as errors
    result.stdout.fnmatch_lines(["*with CI=true nothing may be missing: all of it is missing"])
    result.stdout.fnmatch_lines(["*with CI=true nothing may be missing: the component is missing"])


@pytest.mark.parametrize(
    ("prepare", "complaint"),
    [
        ("ip link set lo up", None),
        ("true", "none"),
        (
            "ip link set lo up; ip link add v0 type veth peer name v1 || ip link add v0 type dummy; ip link set v0 up",
            "lo, v0",
        ),
    ],
    ids=["only lo", "nothing", "another one"],
)
def test_the_promise_of_the_namespace_is_checked(inner: pytest.Pytester, prepare: str, complaint: str | None) -> None:
    """With LOOPBACK_ONLY the run fails unless lo, and nothing but lo, is up."""
    script = f'{prepare}; LOOPBACK_ONLY=1 exec "$@"'
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider", "-k", "browser"]
    done = subprocess.run(
        [*UNSHARE, "sh", "-ec", script, "sh", *command], cwd=inner.path, capture_output=True, text=True, check=False
    )
    assert done.returncode == (0 if complaint is None else 1), done.stdout + done.stderr
    assert complaint is None or f"only lo may be up, but these are: {complaint}" in done.stdout


def test_loopback_is_up_here() -> None:
    """The tests themselves need it."""
    assert "lo" in interfaces_up()


@pytest.mark.parametrize("has_ip", [True, False], ids=["with iproute2", "without it"])
def test_the_runner_gives_loopback_and_passes_arguments_on(tmp_path: Path, has_ip: bool) -> None:
    """``tests/run ARGS`` is pytest with these arguments in a new namespace where lo is up, also without ``ip``."""
    if not has_ip:
        (tmp_path / "ip").write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / "ip").chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    command = [str(ROOT / "tests/run"), "-p", "no:cacheprovider", "tests/test_conftest.py", "-k", "loopback_is_up_here"]
    done = subprocess.run(command, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
