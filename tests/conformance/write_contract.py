"""``make real-cli-contract``: plays every situation with every pinned version and writes down the shapes it saw.

    python -m tests.conformance.write_contract [--rounds N] [--afresh] [VERSION ...]

Each version is recorded three times (``--rounds``), with one, two and four situations at a time, so that what depends
on timing has a chance to show; it is then marked ``sometimes``.  A file that exists keeps the marks it has
(``contract.remember``), so a second run gives the same bytes; ``--afresh`` forgets them.  What changed is printed as
the test would say it.

Needs the installed CLIs and a namespace with nothing but loopback: ``tests/run --python`` gives it.
"""

import argparse
import itertools
import sys
from collections.abc import Sequence
from typing import Final

from tests.conformance import contract
from tests.conformance.contract import Contract
from tests.conformance.recording import record
from tests.conftest import interfaces_up
from tests.real_cli import ROOT, VERSIONS, available

AT_ONCE: Final = (1, 2, 4)
"""How many situations play at once, in one recording after the other."""


class CannotWrite(Exception):
    """Why there is no contract; the text is for the person at the terminal."""


def main(versions: Sequence[str], *, rounds: int, afresh: bool) -> None:
    """Write the files of ``versions``.  Raises ``CannotWrite``; what was written before that stays."""
    if interfaces_up() != ["lo"]:
        raise CannotWrite("the real CLI is started only where nothing but loopback is up: tests/run --python ...")
    if missing := [version for version in versions if version not in available()]:
        raise CannotWrite(f"real CLI {', '.join(missing)} is not installed in .real-cli/ (make real-cli)")
    contract.FOLDER.mkdir(exist_ok=True)
    for version in versions:
        write(version, rounds=rounds, afresh=afresh)
    for left in contract.committed().keys() - set(VERSIONS):
        print(f"{left} is pinned no more: delete {contract.path_of(left).relative_to(ROOT)}")


def write(version: str, *, rounds: int, afresh: bool) -> None:
    """Record one version, write its file, and tell what is not as it was."""
    known = contract.committed()
    before = contract.nearest(version, known)
    new = recorded(version, rounds)
    if version in known and not afresh:
        new = contract.remember(new, known[version])
    path = contract.path_of(version)
    text = contract.render(new)
    is_same = path.exists() and path.read_text() == text
    path.write_text(text)
    keys = sum(len(kind.keys) for kind in new.kinds.values())
    print(f"{path.relative_to(ROOT)} {'is unchanged' if is_same else 'was written'}: "
          f"{len(new.situations)} situations, {len(new.kinds)} kinds of frames, {keys} keys")  # fmt: skip
    if before is not None and not is_same:
        lines = contract.told(contract.differences(before, new)) or ["nothing that matters to a reader of frames"]
        print("\n  ".join([f"beside what was written for {before.version}:", *lines]))


def recorded(version: str, rounds: int) -> Contract:
    """What all rounds have in common.  Raises ``CannotWrite`` for a run that could not be played to its end."""
    observed = []
    for at_once in itertools.islice(itertools.cycle(AT_ONCE), rounds):
        print(f"{version}: recording, {at_once} at a time ...", flush=True)
        recordings = record([version], at_once=at_once)
        runs = list(recordings.runs.values())
        if failed := [f"{run.situation}: {run.failure}" for run in runs if run.failure]:
            raise CannotWrite("\n".join([f"{version} could not be played to the end:", *failed]))
        if (told := contract.reported_versions(runs)) != {version}:
            raise CannotWrite(f"the binary of {version} says that it is {', '.join(sorted(told)) or 'nothing'}")
        observed.append(contract.observe(version, runs))
    return contract.merge(observed)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="make real-cli-contract")
    parser.add_argument("versions", nargs="*", metavar="VERSION", help="default: all pinned")
    parser.add_argument("--rounds", type=int, choices=range(1, 31), default=3, metavar="N", help="recordings: 1 to 30")
    parser.add_argument("--afresh", action="store_true", help="forget what was once seen to vary")
    arguments = parser.parse_args()
    try:
        main(arguments.versions or VERSIONS, rounds=arguments.rounds, afresh=arguments.afresh)
    except CannotWrite as error:
        sys.exit(str(error))
