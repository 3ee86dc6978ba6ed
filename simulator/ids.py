"""Identifiers and times in the forms that the CLI uses.

Callers: everything that makes a message.
"""

import os
import time
from typing import Final

_seed: Final = os.urandom(10).hex()
PREFIX: Final = f"{_seed[:8]}-{_seed[8:12]}-4{_seed[12:15]}-a{_seed[15:18]}-"
"""What all UUIDs of this process begin with; a counter of 12 hexadecimal digits follows (a call of ``urandom`` each
would double the price of a delta)."""
_last = 0


def new_uuid() -> str:
    """A UUID in form (version 4, though its end is a counter), unique in this process and random among processes."""
    return f"{PREFIX}{uuid_block(1):012x}"


def uuid_block(count: int) -> int:
    """Set ``count`` UUIDs aside; returns the first one's number, to be written behind ``PREFIX``."""
    global _last  # noqa: PLW0603 - one counter per process is what makes the UUIDs unique
    first = _last + 1
    _last += count
    return first


def random_uuid() -> str:
    """A UUID that is random throughout: for session ids, which become file names."""
    text = os.urandom(16).hex()
    return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-a{text[17:20]}-{text[20:]}"


def new_id(prefix: str) -> str:
    """An id of the Messages API's kind: ``msg_``, ``toolu_`` or ``req_`` and 24 hexadecimal digits, never repeated."""
    return prefix + os.urandom(12).hex()


def timestamp() -> str:
    """Now, as the CLI writes it: UTC with milliseconds."""
    now = time.time()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now * 1000) % 1000:03d}Z"
