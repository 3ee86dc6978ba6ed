"""A fork bomb with a hard bound, for an agent's tool: ``python bomb.py SLEEPERS WALKERS SECONDS [scrub]``.

``SLEEPERS`` processes in sessions of their own, without the environment that tells whose they are if ``scrub`` is said;
and ``WALKERS`` that fork and die, so that no list of processes is true for long.  No process forks more than one that
lives on, and everything ends by itself after ``SECONDS``.  Only the standard library, and nothing of this project.
"""

import os
import sys
import time

MOST = 300
STEP_S = 0.002


def sleep_away(seconds: int, environment: dict[str, str]) -> None:
    """A session of its own, twice removed from its parent."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execve("/bin/sleep", ["sleep", str(seconds)], environment)  # noqa: S606 - that is the point
        os._exit(0)
    os.wait()


def walk(until: float) -> None:
    """Fork, let the parent die, and again."""
    if os.fork() == 0:
        os.setsid()
        while time.monotonic() < until:
            if os.fork() != 0:
                os._exit(0)
            time.sleep(STEP_S)
        os._exit(0)


def main(sleepers: int, walkers: int, seconds: int, *, is_scrubbed: bool) -> None:
    """Start them all, then wait."""
    assert sleepers + 2 * walkers <= MOST
    environment = {} if is_scrubbed else dict(os.environ)
    for _ in range(sleepers):
        sleep_away(seconds, environment)
    for _ in range(walkers):
        walk(time.monotonic() + seconds)
    time.sleep(seconds)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]), is_scrubbed=sys.argv[4:] == ["scrub"])
