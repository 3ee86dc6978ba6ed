"""What a CLI said before it ended by itself, in one short line that a tenant may read.

Pure.  Caller: ``broker.processes.child``, of a process that did not come up.
"""

import re

MAX_CHARS = 256
_COMPLAINT = re.compile(r"error\b", re.IGNORECASE)
_STACK = re.compile(r"at |\^|\d+ \| |Bun v|Node\.js v")
"""What a crash prints around its message: places, its own source, the runtime's version."""
_PATH = re.compile(r"(?<![\w.])/[^\s'\"`:;,()\[\]]+")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]+")


def last_words(stderr: str) -> str:
    """The first line that names an error, else the last that is no part of a stack; empty when there is none.

    Paths of this machine are taken out: where a broker keeps its sessions is none of a tenant's business.
    """
    lines = [line.strip() for line in stderr.splitlines()]
    said = [line for line in lines if line and not _STACK.match(line)]
    line = next((line for line in said if _COMPLAINT.match(line)), said[-1] if said else "")
    return _CONTROL.sub(" ", _PATH.sub("[path]", line)).strip()[:MAX_CHARS]
