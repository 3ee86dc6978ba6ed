"""Directories that tenants name: resolved through every symlink, and only below the operator's roots.

Blocking file system calls, a few microseconds each.  Caller: ``broker.options.policy``.
"""

import os
from collections.abc import Sequence
from pathlib import Path


def resolve_below(path: str, roots: Sequence[str]) -> str | None:
    """The real path of the directory ``path``, or None when it is none or lies outside of every root.

    ``..`` and symlinks are followed first, in ``path`` and in ``roots``; what the CLI is given is the result, so that
    it opens what was judged.  A root itself counts as below it.
    """
    try:
        real = Path(os.path.realpath(path, strict=True))
    except (OSError, ValueError):
        return None
    if not real.is_dir():
        return None
    return str(real) if any(real.is_relative_to(os.path.realpath(root)) for root in roots) else None
