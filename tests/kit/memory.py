"""Prints what matches a pattern in the memory, environment and command line of every process that can be read.

Run by an agent's tool: ``python memory.py PATTERN``.  Only the standard library, and nothing of this project.
"""

import os
import re
import sys
from collections.abc import Iterator

LARGEST = 1 << 28
"""Bytes of a mapping; larger ones are the runtime's reserve and are left out."""


def memory(pid: str) -> Iterator[bytes]:
    """The writable mappings of a process; nothing when it may not be read."""
    try:
        with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as mem:
            for line in maps:
                span, rights = line.split()[:2]
                start, end = (int(text, 16) for text in span.split("-"))
                if "rw" in rights and end - start < LARGEST:
                    try:
                        mem.seek(start)
                        yield mem.read(end - start)
                    except (OSError, ValueError, OverflowError):
                        continue
    except OSError:
        return


def main(pattern: str) -> None:
    """Search, and print each match once."""
    sought = re.compile(pattern.encode())
    found: set[bytes] = set()
    for pid in os.listdir("/proc"):
        if pid.isdigit() and int(pid) != os.getpid():
            for piece in memory(pid):
                found.update(sought.findall(piece))
    sys.stdout.writelines(f"{match.decode()}\n" for match in sorted(found))


if __name__ == "__main__":
    main(sys.argv[1])
