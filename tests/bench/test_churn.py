"""``bench churn``: connections that come and go leave nothing in the broker; 200,000 of them in ``make soak``."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from bench.__main__ import main
from bench.chaos.link import linked
from bench.churn import judge
from bench.tenant import TenantFailed
from bench.vitals import Vital
from tests.bench.test_tenant import server
from tests.soak import LONG_S, size

CONNECTIONS = size(500, 200_000)


@pytest.mark.timeout(LONG_S)
def test_the_broker_is_as_large_as_before(tmp_path: Path) -> None:
    """Descriptors, threads, tasks and processes are as many as after the first tenth, memory at most 5 MiB more."""
    file = tmp_path / "result.json"
    assert main(["churn", f"--connections={CONNECTIONS}", "--output", str(file)]) == 0
    document = json.loads(file.read_text())
    (subject,) = document["subjects"]
    kinds = subject["facts"]["what they were"]
    assert sum(kinds.values()) == CONNECTIONS
    assert set(kinds) == {
        "visited and closed", "visited and left without a word", "never said hello", "refused for its token",
        "sent half a request",
    }  # fmt: skip
    assert document["violations"] == []


def test_what_is_kept_is_found() -> None:
    """Memory, descriptors, threads, tasks and failed connections, each with its figures."""
    before = Vital(0.0, 1, rss=50 * 2**20, fds=20, threads=5, tasks=7, children=1, folders=1)
    assert judge(Counter(visited=3), before, replace(before, rss=55 * 2**20)) == []
    after = replace(before, rss=56 * 2**20, fds=21, threads=6, tasks=8)
    assert judge(Counter({"failed: gone": 2}), before, after) == [
        "failed: gone: 2", "fds: 20 before, 21 after", "threads: 5 before, 6 after", "tasks: 7 before, 8 after",
        "memory grew by 6.0 MiB",
    ]  # fmt: skip


async def test_only_a_welcome_is_one() -> None:
    """A first frame of another kind is a failed connection, with its type and code."""
    async with server({"type": "broker.error", "code": "bind_failed"}, {"type": "broker.welcome"}) as url:
        link = await linked(url, int(url.rstrip("/").rpartition(":")[2]), lambda text, at: None)
        link.send({"type": "broker.hello"})
        with pytest.raises(TenantFailed, match=r"a welcome: broker[.]error bind_failed"):
            await link.wait_welcomed(5)
        await link.leave()
