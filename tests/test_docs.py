"""The documentation says what the program does."""

import re
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest

from broker.config.limits import Limits
from broker.config.reload import LIVE
from broker.pool import slot
from broker.turns import turn
from protocol.codes import CloseCode, ErrorCode, FailureReason, UpstreamError

TESTS = Path(__file__).resolve().parent
DOCS = TESTS.parent / "docs"


def table(transitions: Mapping[tuple[Any, Any], StrEnum]) -> str:
    """A state machine's table as it stands in the documentation."""
    events = list(dict.fromkeys(event for _, event in transitions))
    rows = [["state", *(event.value for event in events)]]
    for state in dict.fromkeys(state for state, _ in transitions):
        found = (transitions.get((state, event)) for event in events)
        rows.append([state.value, *("-" if to is None else to.value for to in found)])
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


@pytest.mark.parametrize("module", [slot, turn])
def test_the_printed_state_tables_are_the_programs_own(module: Any) -> None:
    """docs/architecture.md holds each machine's table, line by line."""
    assert table(module.TRANSITIONS) in (DOCS / "architecture.md").read_text()


@pytest.mark.parametrize("alphabet", [CloseCode, ErrorCode, FailureReason, UpstreamError])
def test_every_code_is_documented(alphabet: Any) -> None:
    """Each name that can appear on the wire is in docs/protocol.md."""
    text = (DOCS / "protocol.md").read_text()
    names = [code.label if isinstance(code, CloseCode) else code.value for code in alphabet]
    assert [name for name in names if name not in text and name != "bad_utf8"] == []


def test_every_limit_is_documented() -> None:
    """Each key of ``[limits]`` is in docs/operations.md."""
    text = (DOCS / "operations.md").read_text()
    assert [name for name in Limits.__struct_fields__ if f"limits.{name}`" not in text] == []


def test_every_decision_is_in_the_index() -> None:
    """docs/adr/README.md lists each file once, and no other."""
    index = (DOCS / "adr" / "README.md").read_text()
    files = sorted(path.name for path in (DOCS / "adr").glob("0*.md"))
    assert files
    assert all(index.count(f"({name})") == 1 for name in files)
    assert index.count("(0") == len(files)


TEST_NAME = re.compile(r"`(test_\w+\.py)?(?:::(test_\w+))?`")


def test_every_feature_is_proven_by_tests_that_exist() -> None:
    """docs/features.md has 28 rows; each names a test on the real CLI and one without it, by file and by function."""
    files = {path.name: path.read_text() for path in TESTS.rglob("test_*.py")}
    rows = [line for line in (DOCS / "features.md").read_text().splitlines() if re.match(r"\| \d+ \|", line)]
    assert [int(row.split("|")[1]) for row in rows] == list(range(1, 29))
    for row in rows:
        named = ""
        found: list[str] = []
        for file, function in TEST_NAME.findall(row.rpartition("|")[0].rpartition("|")[2]):
            named = file or named
            assert named in files, (row, named)
            assert not function or f"def {function}(" in files[named], (row, function)
            found.append(files[named])
        assert any("real_cli" in text for text in found), row
        assert any("real_cli" not in text for text in found), row


def test_every_key_that_a_reload_applies_is_documented() -> None:
    """docs/operations.md names each in its table of reloads, by its last part or as a whole table (``turn.*``)."""
    section = (DOCS / "operations.md").read_text().partition("## Changing the configuration")[2].partition("\n## ")[0]
    named = set(re.findall(r"[`.]([a-z_*]+)(?=`)", section)) | set(re.findall(r"`([a-z]+\.\*)`", section))
    assert [key for key in sorted(LIVE) if not {key.rpartition(".")[2], f"{key.partition('.')[0]}.*"} & named] == []
