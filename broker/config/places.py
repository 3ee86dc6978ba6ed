"""Files and folders that an operator names: what cannot be used is told with its key, as any other mistake.

Owner: none.  Callers: ``broker.processes.launcher`` for ``state.dir``, ``broker.app`` for ``--port-file``.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from broker.errors import ConfigError

MISTAKES = frozenset(
    {
        errno.EACCES, errno.EEXIST, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOENT, errno.ENOTDIR,
        errno.EPERM, errno.EROFS,
    }
)  # fmt: skip
"""What another name would mend.  A full disk, or one that fails, is none: another start may find it mended."""


@contextmanager
def place(key: str, allowed: str) -> Iterator[None]:
    """Around what uses the place that ``key`` names.

    Raises ``ConfigError``, with what is ``allowed`` there, for an ``OSError`` of ``MISTAKES``; every other goes on.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in MISTAKES:
            raise
        words = "is there, and no folder" if error.errno == errno.EEXIST else str(error.strerror)
        raise ConfigError(key, f"{error.filename}: {words}", allowed) from error
