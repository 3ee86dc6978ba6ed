"""Folders in folders, deeper than a path can name.

Caller: tests of what looks at an agent's files.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NAME = "d" * 200


@contextmanager
def dig(root: Path, depth: int) -> Iterator[None]:
    """``depth`` folders of ``NAME`` below ``root``, each in the one before; removed in the end."""
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for _ in range(depth):
            os.mkdir(NAME, dir_fd=fd)
            below = os.open(NAME, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
            os.close(fd)
            fd = below
        yield
    finally:
        os.close(fd)
        top = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            shutil.rmtree(NAME, dir_fd=top)
        finally:
            os.close(top)
