"""The bench of a bind with everything: a tiny run with the simulator, in a program of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_every_arrival_gives_every_figure(tmp_path: Path) -> None:
    """All options are taken, the MCP server is reached, and the result says which options they were."""
    file = tmp_path / "result.json"
    done = subprocess.run(
        [sys.executable, "-m", "bench", "binding", "--n=2", "--quiet=0", "--output", str(file)],
        cwd=ROOT, capture_output=True, text=True, timeout=55, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (subject,) = json.loads(file.read_text())["subjects"]
    assert {name: series["n"] for name, series in subject["series"].items()} == {
        "welcome": 2, "bound": 2, "connect": 2, "ready": 2, "bare_bound": 2
    }  # fmt: skip
    assert "bound_p50 <= 150 ms" in done.stdout
    assert "mcp_servers" in subject["facts"]["options"]
