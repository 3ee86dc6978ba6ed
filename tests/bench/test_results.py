"""Result files: read back, beside one another, as a page, in README.md."""

import json
import random
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.__main__ import EXIT_ASSERTION, EXIT_MISTAKE, main
from bench.knee import Curve, Point
from bench.report import Report, Subject
from bench.results.comparison import Limit, interval, rows
from bench.results.document import NoResult, read
from bench.results.page import page_of
from bench.results.readme import BEGIN, END, NoMarkers, replaced, tables
from bench.results.report_file import BASELINES, README
from bench.results.text import text_of
from bench.samples import Samples

ROOT = Path(__file__).resolve().parents[2]
MEASURED = st.lists(st.floats(min_value=0.001, max_value=10), min_size=1, max_size=60)
OUTSIDE = re.compile(r"(?:src|href|action|data|xlink:href|srcset|poster)\s*=|url\s*\(|@import|<script|<link|<iframe")


def report(values: list[float], name: str = "x", bench: str = "run", **flags: Any) -> Report:
    """A report of one subject with one series."""
    made = Report(bench, flags, 1)
    subject = Subject(name)
    subject.open_series("ttft", "due -> first delta").extend(values)
    subject.facts["turns per second"] = float(len(values))
    subject.intervals = [{"t": 1.0, "sessions": 1, "turns": 2, "failures": 1, "ttft_p50": 3.0, "ttft_p95": 4.0}]
    made.subjects.append(subject)
    return made


def written(path: Path, made: Report) -> Path:
    """Its result file."""
    made.write(path)
    return path


# -- the file --


def test_a_file_is_printed_as_the_run_was(tmp_path: Path) -> None:
    """The table of the file is the table of the run, to the character, but for the load of the machine."""
    made = report([0.1, 0.2])
    made.subjects[0].generator_bound.append("its loop was late")
    made.subjects[0].shows_intervals = True
    file = written(tmp_path / "a.json", made)
    told, again = made.text(), text_of(read(file))
    assert "GENERATOR-BOUND: these figures are of the generator, not of the broker: its loop was late" in told
    assert json.loads(file.read_text())["subjects"][0]["generator_bound"] == ["its loop was late"]
    assert told.partition("\n")[2] == again.partition("\n")[2]


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"schema":2}', '{"schema":1}', '{"schema":1,"bench":3}', "[" * 100_000, "\ud800"]
)
def test_what_is_no_result_is_refused(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Another schema, parts missing, no JSON: exit 2 and one line, for each command."""
    file = tmp_path / "a.json"
    file.write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(NoResult):
        read(file)
    assert main(["report", str(file)]) == EXIT_MISTAKE
    assert main(["compare", str(file), str(file)]) == EXIT_MISTAKE
    assert capsys.readouterr().err.count("\n") == 2


def test_a_file_that_is_not_there_is_a_mistake(tmp_path: Path) -> None:
    """Exit 2, no traceback."""
    assert main(["report", str(tmp_path / "none.json")]) == EXIT_MISTAKE
    assert main(["report"]) == EXIT_MISTAKE
    assert main(["report", "--check", "a.json"]) == EXIT_MISTAKE


# -- compare --


@settings(max_examples=10)
@given(MEASURED, MEASURED)
def test_a_change_is_relative_to_the_first(one: list[float], other: list[float]) -> None:
    """For each figure, and turned around it is undone; nothing has changed against itself."""
    first, second = report(one).document(), report(other).document()
    there = {row.figure: row for row in rows(first, second, 1)}
    back = {row.figure: row for row in rows(second, first, 1)}
    assert there.keys() == back.keys()
    for figure, row in there.items():
        assert (1 + row.change) * (1 + back[figure].change) == pytest.approx(1)
    assert all(row.change == 0 for row in rows(first, first, 1))


@settings(max_examples=25)
@given(MEASURED.filter(lambda values: len(values) > 1), st.sampled_from(["mean", "p50", "p95"]), st.integers(0, 99))
def test_an_interval_is_one(values: list[float], statistic: str, seed: int) -> None:
    """Its ends are in order; samples that are all the same leave no doubt."""
    chance = random.Random(seed)
    low, high = interval(Samples(values), Samples(values), statistic, chance)
    assert low is not None
    assert high is not None
    assert low <= high
    same = Samples([2.0] * len(values))
    assert interval(same, same, statistic, chance) == (0.0, 0.0)


def test_an_interval_finds_what_has_moved() -> None:
    """A tenth more, everywhere: the interval of the mean and of the median is above 0 and holds 10 %."""
    chance = random.Random(1)
    values = [chance.uniform(0.9, 1.1) for _ in range(2000)]
    for statistic in ("mean", "p50"):
        low, high = interval(Samples(values), Samples([value * 1.1 for value in values]), statistic, chance)
        assert low is not None
        assert high is not None
        assert 0 < low < 0.1 < high < 0.2


@given(st.floats(min_value=-0.99, max_value=10), st.integers(0, 500))
def test_a_limit_is_broken_on_its_own_side_only(change: float, percent: int) -> None:
    """What may rise by so much may fall as it likes, and the other way round."""
    assert Limit.parse(f"ttft_p95:+{percent}%").is_broken(change) is (change > percent / 100)
    assert Limit.parse(f"turns_per_second:-{percent}%").is_broken(change) is (change < -percent / 100)


@pytest.mark.parametrize("text", ["", "ttft_p95", "ttft_p95:10%", "ttft:+10%", "ttft_p101:+1%", "ttft_p95:+x%"])
def test_what_is_no_limit_is_refused(text: str) -> None:
    """With the arguments, before a file is opened."""
    with pytest.raises(SystemExit) as mistake:
        main(["compare", "a", "b", "--fail-on", text])
    assert mistake.value.code == EXIT_MISTAKE


def test_compare_fails_on_what_was_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Twice as slow is more than 10 %; the other way round it is none; the table is printed in both cases."""
    slow, fast = report([0.2] * 9, rate=2), report([0.1] * 9, rate=1)
    first, second = written(tmp_path / "a.json", fast), written(tmp_path / "b.json", slow)
    assert main(["compare", str(first), str(second), "--fail-on", "ttft_p99.9:+10%"]) == EXIT_ASSERTION
    told = capsys.readouterr()
    assert "+100.0%" in told.out
    assert "differs: rate: 1 -> 2" in told.out
    assert "ttft_p99.9 +100.0%, allowed ttft_p99.9:+10%" in told.err
    assert main(["compare", str(second), str(first), "--fail-on", "ttft_p95:+10%"]) == 0


def test_files_that_do_not_fit_are_a_mistake(tmp_path: Path) -> None:
    """Another bench, no subject in common, nothing measured in both, a figure that is in neither."""
    one = written(tmp_path / "a.json", report([0.1]))
    others = {
        "bench": report([0.1], bench="soak"),
        "nothing": report([]),
    }
    two_subjects = report([0.1], name="y")
    two_subjects.subjects.append(Subject("z"))
    others["subjects"] = two_subjects
    for name, made in others.items():
        made.subjects[0].facts.clear()
        assert main(["compare", str(one), str(written(tmp_path / f"{name}.json", made))]) == EXIT_MISTAKE, name
    assert main(["compare", str(one), str(one), "--fail-on", "gap_p50:+1%"]) == EXIT_MISTAKE


# -- the page --


@given(st.text(max_size=40), MEASURED)
def test_a_page_is_well_formed_whatever_it_says(text: str, values: list[float]) -> None:
    """Any name, label, fact or flag is a text in it; nothing in it is loaded or run."""
    made = report(values, name=text, flag=text)
    made.label = text
    made.violations.append(text)
    made.tables.append(text)
    made.notes.append(text)
    made.subjects[0].facts[text] = {text: text}
    made.subjects[0].generator_bound.append(text)
    made.curve = Curve(text, [text], [Point(1.0, 1.0, 0.0, {"ttft_p95": 3.0}, (text,))])
    page = page_of(made.document())
    root = ElementTree.fromstring(page)  # noqa: S314 - of our own making
    tags = {element.tag for element in root.iter()}
    assert not tags & {"script", "link", "iframe", "img", "a", "object", "image", "use", "foreignObject"}
    assert not any(name.startswith("on") for element in root.iter() for name in element.attrib)


def test_a_page_shows_the_charts_and_nothing_from_outside(tmp_path: Path) -> None:
    """Distribution, percentiles, timeline with failures, sweep with its knee; a planted script stays text."""
    made = report([0.1, 0.2, 0.3], name="<script>alert(1)</script>")
    made.curve = Curve("rate", ["b"], [Point(n, 1.0, 0.0, {"ttft_p95": n * 3.0}, ()) for n in (1.0, 2.0)])
    made.subjects[0].generator_bound.append("its loop was late")
    file, page = written(tmp_path / "a.json", made), tmp_path / "a.html"
    assert main(["report", str(file), "--html", str(page)]) == 0
    text = page.read_text()
    for part in ("Percentiles", "Distribution", "Over time", "failures", "knee 2", "GENERATOR-BOUND"):
        assert part in text
    assert OUTSIDE.search(text) is None
    assert "://" not in text
    assert len(ElementTree.fromstring(text).findall(".//svg")) == 4  # noqa: S314 - of our own making


# -- README.md --


def baseline(**ratios: float) -> dict[str, Any]:
    """A comparison."""
    return Report("peers", {}, 1, ratios=ratios).document() | {"targets": []}


def test_the_table_has_a_column_for_each_program() -> None:
    """A row for each figure; what has no program stands below; a target that is missed is named."""
    made = baseline(burst_vs_websocketd=0.2564, paced_vs_websocketd=0.8, burst_vs_plain=0.1, idle_kib=31.0)
    made["targets"] = [{"bound": "idle_kib <= 30", "holds": False}, {"bound": "a <= 1", "holds": True}]
    lines = tables([made]).splitlines()
    assert lines[0] == "| broker's figure / that of | websocketd | plain |"
    assert lines[2:4] == ["| burst | 0.256 | 0.1 |", "| paced | 0.8 | - |"]
    assert "Of the broker alone: idle_kib 31." in lines
    assert "Targets that hold: 1 of 2; missed: `idle_kib <= 30`." in lines
    assert tables([]) == tables([baseline()]) == ""


@given(st.text(max_size=50), st.text(max_size=50), st.text(max_size=50))
def test_only_what_is_between_the_markers_is_replaced(before: str, old: str, after: str) -> None:
    """And doing it twice is doing it once."""
    text = f"{before}{BEGIN}{old}{END}{after}"
    once = replaced(text, "new")
    assert once == f"{before}{BEGIN}\nnew\n{END}{after}"
    assert replaced(once, "new") == once
    assert replaced(once, "") == f"{before}{BEGIN}\n{END}{after}"


@pytest.mark.parametrize("text", ["", BEGIN, END, f"{END}{BEGIN}", f"{BEGIN}{BEGIN}{END}"])
def test_without_its_markers_a_text_is_refused(text: str) -> None:
    """Nothing is guessed."""
    with pytest.raises(NoMarkers):
        replaced(text, "new")


def test_readme_is_written_and_checked(tmp_path: Path) -> None:
    """A check fails before it is written and holds after; nothing is to be written without baselines; no markers: 2."""
    readme = tmp_path / "README.md"
    readme.write_text(f"# x\n{BEGIN}\n{END}\n")
    flags = ["report", "--readme", f"--readme-file={readme}"]
    assert main([*flags, "--check", f"--baselines={tmp_path / 'none'}"]) == 0
    (tmp_path / "peers.json").write_text(json.dumps(baseline(burst_vs_websocketd=0.2)))
    flags.append(f"--baselines={tmp_path}")
    assert main([*flags, "--check"]) == EXIT_ASSERTION
    assert main(flags) == 0
    assert "| burst | 0.2 |" in readme.read_text()
    assert main([*flags, "--check"]) == 0
    readme.write_text("# x\n")
    assert main(flags) == EXIT_MISTAKE


def test_the_committed_readme_has_the_committed_figures() -> None:
    """`python -m bench report --readme` was run after the last baseline was committed."""
    assert README == ROOT / "README.md"
    assert BASELINES == ROOT / "bench" / "baselines"
    assert main(["report", "--readme", "--check"]) == 0
