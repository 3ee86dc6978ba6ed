"""Results of ratios beside one another: limits on single ones, and one for all that have a target."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench.__main__ import EXIT_ASSERTION, EXIT_MISTAKE, main
from bench.ratios import RatioBound
from bench.report import Report
from bench.results.document import read
from bench.results.page import page_of
from bench.results.text import text_of

TARGETS = ("burst_vs_websocketd <= 0.3", "handshakes_per_s >= 1000")


def peers(path: Path, *targets: str, **ratios: float) -> Path:
    """The file of a comparison with targets."""
    made = Report("peers", {}, 1, ratios=ratios, targets=[RatioBound.parse(target) for target in targets])
    made.write(path)
    return path


def test_ratios_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A ratio that rises by more than its limit exits 99; one that was not measured in both is a mistake."""
    before = peers(tmp_path / "a.json", burst_vs_websocketd=0.2, connect_vs_plain=0.1)
    after = peers(tmp_path / "b.json", burst_vs_websocketd=0.24)
    both = ["compare", str(before), str(after)]
    assert main([*both, "--fail-on=burst_vs_websocketd:+25%"]) == 0
    told = capsys.readouterr().out.splitlines()[-1]
    assert told.split() == ["burst_vs_websocketd", "0.2", "0.24", "+20.0%", "-"]
    assert main([*both, "--fail-on=burst_vs_websocketd:+15%"]) == EXIT_ASSERTION
    assert "ratios: burst_vs_websocketd +20.0%, allowed burst_vs_websocketd:+15%" in capsys.readouterr().err
    assert main([*both, "--fail-on=connect_vs_plain:+15%"]) == EXIT_MISTAKE
    with pytest.raises(SystemExit):
        main([*both, "--fail-on=burst_vs_nobody:+15%"])


@pytest.mark.parametrize(
    ("burst", "handshakes", "code"),
    [(0.2, 1000.0, 0), (0.22, 900.0, 0), (0.01, 9000.0, 0), (0.24, 1000.0, 99), (0.2, 800.0, 99)],
)
def test_every_ratio_with_a_target_may_be_worse_by_a_share(
    tmp_path: Path, burst: float, handshakes: float, code: int
) -> None:
    """What has to stay below its target must not rise by more, what has to stay above it must not fall by more."""
    before = peers(tmp_path / "a.json", *TARGETS, burst_vs_websocketd=0.2, handshakes_per_s=1000.0, paced_vs_plain=1.0)
    now = {"burst_vs_websocketd": burst, "handshakes_per_s": handshakes, "paced_vs_plain": 9.0}
    after = peers(tmp_path / "b.json", *TARGETS, **now)
    assert main(["compare", str(before), str(after), "--fail-on-targets=15%"]) == code


def test_a_target_without_its_ratio_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One that drowned in noise is named and fails nothing; when none is left to be judged that is a mistake."""
    before = peers(tmp_path / "a.json", *TARGETS, burst_vs_websocketd=0.2, handshakes_per_s=1000.0)
    after = peers(tmp_path / "b.json", *TARGETS, burst_vs_websocketd=0.2)
    assert main(["compare", str(before), str(after), "--fail-on-targets=15"]) == 0
    assert "has a target and is not in both: handshakes_per_s" in capsys.readouterr().out
    bare = peers(tmp_path / "c.json", burst_vs_websocketd=0.2)
    assert main(["compare", str(before), str(bare), "--fail-on-targets=15"]) == EXIT_MISTAKE
    with pytest.raises(SystemExit):
        main(["compare", str(before), str(after), "--fail-on-targets=much"])


def test_targets_are_in_the_file_and_in_what_is_shown(tmp_path: Path) -> None:
    """Each bound, whether it holds, and its verdict, which the table and the page print."""
    file = peers(tmp_path / "a.json", *TARGETS, burst_vs_websocketd=0.2)
    assert json.loads(file.read_text())["targets"] == [
        {"bound": TARGETS[0], "holds": True, "verdict": f"ok     {TARGETS[0]}: 0.2"},
        {"bound": TARGETS[1], "holds": False, "verdict": f"MISSED {TARGETS[1]}: not measured"},
    ]
    document = read(file)
    assert f"  target ok     {TARGETS[0]}: 0.2\n  target MISSED {TARGETS[1]}: not measured" in text_of(document)
    shown = ElementTree.fromstring(page_of(document))  # noqa: S314 - of our own making
    assert f"MISSED {TARGETS[1]}: not measured" in [one.text for one in shown.iter("p")]
