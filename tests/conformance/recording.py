"""Plays every situation with every subject and keeps what was said: the material of the conformance test.

Two at a time, each in directories of its own and with a Messages API of its own, so that no run can see another.
Caller: the session fixture in ``conftest``; ``python -m tests.conformance.recording FOLDER [SUBJECT ...]`` writes the
recordings as JSON for people who want to read them.
"""

import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NamedTuple

from simulator.messages_api import MessagesApi
from tests.conformance.driver import Frame, Missing
from tests.conformance.situations import SITUATIONS
from tests.conformance.stage import Stage
from tests.real_cli import ROOT, available

SIMULATOR: Final = "simulator"
AT_ONCE: Final = 2


class Spoken(NamedTuple):
    """What one process wrote to stdout, and how it ended (None: it was still running)."""

    frames: list[Frame]
    code: int | None


class Run(NamedTuple):
    """One situation with one subject.

    ``requests`` is what its Messages API saw; ``failure`` is why it could not be played to its end.
    """

    situation: str
    subject: str
    processes: list[Spoken]
    facts: dict[str, Any]
    requests: list[dict[str, Any]]
    failure: str | None
    seconds: float


class Recordings(NamedTuple):
    """All runs, by (situation, subject)."""

    runs: dict[tuple[str, str], Run]
    seconds: float


def commands() -> dict[str, list[str]]:
    """Subject -> command, of everything that can be run here."""
    return {
        SIMULATOR: [sys.executable, "-m", "simulator.cli"],
        **{version: [str(path)] for version, path in available().items()},
    }


def play(name: str, subject: str, command: list[str]) -> Run:
    """One run; a situation that cannot be played to its end becomes a ``failure``, not an exception."""
    # The simulator is started in another directory and has to find its package; the real CLI has no use for this.
    extra: Mapping[str, str] = {"PYTHONPATH": str(ROOT)} if subject == SIMULATOR else {}
    failure = None
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="conformance-") as root, MessagesApi() as api:
        stage = Stage(command, Path(root), api, extra)
        try:
            SITUATIONS[name](stage)
        except (Missing, KeyError, OSError) as error:
            failure = f"{type(error).__name__}: {error}"
        finally:
            stage.close()
        processes = [Spoken(process.frames, process.code) for process in stage.processes]
        return Run(name, subject, processes, stage.facts, api.requests(), failure, time.monotonic() - started)


def record(
    subjects: Sequence[str] | None = None, names: Sequence[str] | None = None, at_once: int = AT_ONCE
) -> Recordings:
    """Play ``names`` (all situations) with ``subjects`` (all that are available), ``at_once`` at a time."""
    started = time.monotonic()
    chosen = {subject: command for subject, command in commands().items() if subjects is None or subject in subjects}
    with ThreadPoolExecutor(at_once) as pool:
        jobs = [pool.submit(play, name, *item) for name in names or SITUATIONS for item in chosen.items()]
        runs = [job.result() for job in jobs]
    return Recordings({(run.situation, run.subject): run for run in runs}, time.monotonic() - started)


def main(folder: Path, subjects: Sequence[str]) -> None:
    recordings = record(subjects or None)
    for (name, subject), run in recordings.runs.items():
        place = folder / subject
        place.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps({"facts": run.facts, "failure": run.failure, "seconds": round(run.seconds, 2)})]
        for spoken in run.processes:
            lines.append(f"--- exit {spoken.code}")
            lines.extend(json.dumps(frame) for frame in spoken.frames)
        (place / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
        print(f"{subject:10} {name:28} {run.seconds:5.1f} s  {json.dumps(run.facts)[:150]}  {run.failure or ''}"[:400])
    print(f"{recordings.seconds:.1f} s")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
