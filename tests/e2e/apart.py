"""A stage for the tests of isolation: a broker in each mode, the user that it runs as, and an agent that looks around.

Callers: ``test_isolation`` (the simulated CLI) and ``test_real_isolation``.  The folders lie outside of /tmp, which
isolation covers, and below nothing that another user cannot enter.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.kit.broker import ROOT, Broker, running_broker
from tests.kit.client import Client

BROKER_USER = 4242 + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
"""Whom a broker without root runs as."""
NEEDED = (ROOT, Path(sys.base_prefix))
"""What a CLI has to read, beside the system and its own directory."""
VIEW = """set -e
top=$1 hold=/mnt
shift
mount -n -t tmpfs -o mode=0755 none "$hold"
for path in "$@"; do
    [ "$path" = -- ] && break
    mkdir -p "$hold$path"
    mount -n --bind "$path" "$hold$path"
done
mount -n --rbind "$hold$top" "$top"
while [ "$1" != -- ]; do shift; done
shift
exec "$@"
"""
"""In a mount namespace: of the folder ``top``, which other users cannot enter, they see what they need and no more."""
FIRST_ID = 21000 + 200 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
"""Another range for each worker: a session's end kills whatever runs under its id."""
FOLDERS = Path("/run")
AS_USER = ("setpriv", f"--reuid={BROKER_USER}", f"--regid={BROKER_USER}", "--clear-groups", "--")
SPARES = 2

CANARY = re.compile(r"canary[0-9]{3}x[0-9a-f]{16}")
_SOUGHT = "canar[y][0-9]{3}x[0-9a-f]{16}"
"""The same, in a form that the command which holds it does not match."""
MEMORY = f"{sys.executable} -S {ROOT}/tests/kit/memory.py '{_SOUGHT}'"
LOOK = "; ".join(
    [
        f"(env; for p in /proc/[0-9]*; do tr '\\0' '\\n' <$p/environ; tr '\\0' '\\n' <$p/cmdline; done) 2>/dev/null "
        f"| grep -aoE '{_SOUGHT}'",
        f"command grep -rhaoE '{_SOUGHT}' $HOME $TMPDIR .. /dev/shm 2>/dev/null",
        f"find /tmp -maxdepth 2 -type f -size -64k -exec grep -haoE '{_SOUGHT}' {{}} + 2>/dev/null",  # it may be large
        MEMORY,
        "true",
    ]
)
"""What an agent does who is after secrets: every environment, command line, memory and file that it can read."""


def view() -> tuple[str, ...]:
    """The words that make what is ``NEEDED`` readable for every user, where it lies in somebody's closed folder."""
    words: tuple[str, ...] = ()
    for top in {top for path in NEEDED for top in _closed(path)}:
        below = [str(path) for path in NEEDED if path.is_relative_to(top)]
        unshare = ("unshare", "--mount", "--propagation", "private", "--")
        words += (*unshare, "sh", "-c", VIEW, "sh", str(top), *below, "--")
    return words


def _closed(path: Path) -> list[Path]:
    """The topmost folder above ``path`` that other users cannot enter, if there is one."""
    return [folder for folder in reversed(path.parents) if not folder.stat().st_mode & 0o001][:1]


def need_root() -> None:
    """Skip where this process may not become other users, or these cannot run the project."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to become other users")
    words = (*view(), *AS_USER, "sh", "-c", 'exec "$@"', "sh", sys.executable, "-c", "import simulator.cli")
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"other users cannot run the project: {done.stderr.strip()[-300:]}")


@contextmanager
def open_folder() -> Iterator[Path]:
    """An empty folder that every user can enter, removed in the end."""
    folder = Path(tempfile.mkdtemp(prefix="broker-test-", dir=FOLDERS))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@asynccontextmanager
async def apart(
    mode: str, config: Mapping[str, Any] | None = None, *, warm: int = SPARES, **broker: Any
) -> AsyncIterator[Broker]:
    """A running broker with that ``pool.isolation``; ``userns`` runs as ``BROKER_USER``.

    ``broker.extra["again"]()`` is another run of it in the same folder, for when this one has ended.
    """
    need_root()
    with open_folder() as folder:
        ledger = folder / "ledger.jsonl"
        ledger.touch()
        ledger.chmod(0o666)
        pool = {"isolation": mode, "uid_range": [FIRST_ID, FIRST_ID + 99], "profiles": {"default": {"warm": warm}}}
        given = dict(config or {})
        session = {"max_sessions": 50, **given.pop("session", {})}  # each has an id of its own
        whole = {**given, "pool": {**pool, **given.pop("pool", {})}, "session": session}
        if mode == "userns":
            os.chown(folder, BROKER_USER, BROKER_USER)
            os.chown(ledger, BROKER_USER, BROKER_USER)
            broker["prefix"] = AS_USER
        broker["prefix"] = (*view(), *broker.get("prefix", ()))
        async with running_broker(folder, whole, **broker) as running:
            running.extra["again"] = lambda: running_broker(folder, whole, **broker)
            yield running


async def bash(client: Client, command: str, within_s: float = 60) -> str:
    """What the agent's Bash tool printed; it must be allowed to run without a prompt."""
    quoted = command.replace("\\", "\\\\").replace('"', '\\"')
    seen = len(client.frames)
    end = await client.turn(f'[[sim tokens=1 tool="Bash:{quoted}"]]', within_s=within_s)
    assert end["type"] == "broker.turn_completed", end
    contents = [f["message"]["content"] for f in client.frames[seen:] if f["type"] == "user"]
    results = [b for content in contents if isinstance(content, list) for b in content if b["type"] == "tool_result"]
    assert results, f"the tool did not run: {end}, {contents}"
    return "\n".join(str(result["content"]) for result in results)


def folder_of(broker: Broker, client: Client) -> Path:
    """The directory of this client's conversation."""
    session: str = client.welcome["cli"]["session_id"]
    return broker.state / "sessions" / session[:13]
