"""Whether credentials can be hidden from the tools that agents run: the CLI's own scrub, where it works.

With ``CLAUDE_CODE_SUBPROCESS_ENV_SCRUB=1`` the CLI runs each command in bubblewrap, without the credentials in its
environment and in a PID namespace, where the CLI's own environment and memory cannot be seen.  Without bubblewrap it
does not start then, without socat every command fails (measured on 2.1.197 and 2.1.329): so both are tried first.

Caller: ``broker.processes.launcher``, once at the start.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

EFFECT: Final = "API keys and bearer tokens can be read by the tools that an agent runs"
SOCKET_PATH_BYTES: Final = 107
"""Of a Unix socket (unix(7)).  The scrub makes one in TMPDIR; where it cannot, every command of the agent fails."""
_SOCKET: Final = "claude-http-0123456789abcdef.sock"
_PACKAGES: Final = {"bwrap": "bubblewrap", "socat": "socat"}
_TRIALS: Final = (
    ("bwrap", "--unshare-user", "--unshare-pid", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "true"),
    ("socat", "-V"),
)


def obstacle(path: str, tmp: Path, attempt: Callable[[Sequence[str]], str]) -> str:
    """Why the scrub would not work for a session's processes, with what to install; empty when it works.

    ``path``: their PATH; ``tmp``: the temporary directory of one of them, all are as long.  ``attempt`` runs a command
    as they are run and returns what went wrong.
    """
    absent = [package for program, package in _PACKAGES.items() if shutil.which(program, path=path) is None]
    if absent:
        return f"{' and '.join(absent)} missing (Debian: apt-get install {' '.join(absent)})"
    for words in _TRIALS:
        if complaint := attempt(words):
            return f"{words[0]} does not work here: {complaint}"
    length = len(os.fsencode(tmp / _SOCKET))
    if length > SOCKET_PATH_BYTES:
        return f"a socket below state.dir would have a path of {length} bytes, {SOCKET_PATH_BYTES} are possible"
    return ""
