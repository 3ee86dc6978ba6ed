"""The ledger: a record of every line, good enough to compare what was said with what arrived."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from tests.simulator.cli_child import Child, control, user


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_line_is_recorded(tmp_path: Path) -> None:
    """Lines out are those that arrived, lines in those that were sent, with size, hash and number."""
    ledger = tmp_path / "ledger"
    with Child(tmp_path, SIMULATOR_LEDGER=str(ledger)) as child:
        sent = [control("initialize"), user("hello [[sim tokens=20 garbage_line bad_utf8 burst]]"), user("x" * 5000)]
        child.send(*sent)
        assert child.finish() == 0
    found = rows(ledger)
    said = [row for row in found if row["dir"] == "out"]
    heard = [row for row in found if row["dir"] == "in"]
    assert [row["sha256"] for row in said] == [hashlib.sha256(line).hexdigest() for line in child.raw]
    assert [row["bytes"] for row in said] == list(map(len, child.raw))
    assert [row["n"] for row in said] == list(range(1, len(said) + 1))
    assert [row.get("line") for row in heard] == [json.dumps(sent[0]), json.dumps(sent[1]), None]
    assert heard[2]["sha256"] == hashlib.sha256(json.dumps(sent[2]).encode()).hexdigest()


def test_a_process_is_identified(tmp_path: Path) -> None:
    """Each record names pid, start, directory and inode; the first one how the process was started."""
    ledger, url = tmp_path / "ledger", "http://127.0.0.1:9"
    with Child(tmp_path, "--model=opus", SIMULATOR_LEDGER=str(ledger), ANTHROPIC_BASE_URL=url) as child:
        child.ask("get_binary_version")
        ticks = int(Path(f"/proc/{child.process.pid}/stat").read_text().rpartition(")")[2].split()[19])
        assert child.finish() == 0
    meta, *rest = rows(ledger)
    inode = os.stat(child.work).st_ino
    assert {(row["pid"], row["start"], row["cwd"], row["dir_inode"]) for row in [meta, *rest]} == {
        (child.process.pid, ticks, str(child.work), inode)
    }
    assert (meta["dir"], meta["argv"][-1]) == ("meta", "--model=opus")
    assert meta["env"]["ANTHROPIC_BASE_URL"] == url
    assert meta["env"]["CLAUDE_CODE_OAUTH_TOKEN"] == "dummy-oauth-token"
    assert "PATH" not in meta["env"]


def test_processes_share_a_ledger(tmp_path: Path) -> None:
    """Records of several processes at once are never torn."""
    ledger = tmp_path / "ledger"
    homes = [tmp_path / str(number) for number in range(3)]
    children = []
    for home in homes:
        home.mkdir()
        child = Child(home, SIMULATOR_LEDGER=str(ledger))
        child.say("hello [[sim tokens=200]]")
        children.append(child)
    for child in children:
        with child:
            assert child.finish() == 0
    found = rows(ledger)
    for child in children:
        said = [row for row in found if row["pid"] == child.process.pid and row["dir"] == "out"]
        assert [row["n"] for row in said] == list(range(1, len(child.raw) + 1))
