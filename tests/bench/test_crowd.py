"""``bench crowd``: what it shows, and that it fails when a message goes unanswered."""

import json
from pathlib import Path

import pytest

from bench.__main__ import main


def test_a_small_crowd_is_served(tmp_path: Path) -> None:
    """Every message of six tenants on two processes, each with its figures."""
    file = tmp_path / "result.json"
    code = main(["crowd", "--tenants=6", "--processes=2", "--rounds=2", "--every=0.5", "--output", str(file)])
    assert code == 0
    (subject,) = json.loads(file.read_text())["subjects"]
    assert subject["facts"]["turns answered"] == "12 of 12"
    assert {name: row["n"] for name, row in subject["series"].items() if name != "generator_lag"} == {
        "welcome": 6, "ttft": 12, "turn": 12,
    }  # fmt: skip


def test_what_is_not_answered_fails_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who waits too long is counted and told."""
    monkeypatch.setattr("bench.crowd.DEADLINE_S", 0.001)
    assert main(["crowd", "--tenants=2", "--processes=2", "--rounds=1", "--every=0.1"]) == 1
    assert "messages were not answered" in capsys.readouterr().err
