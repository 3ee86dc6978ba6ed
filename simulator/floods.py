"""Output that no parent wants: floods, a line without an end, lines that are no messages.

Nothing of it is in the ledger but what is short.  Callers: ``simulator.reply``, in a turn, and ``simulator.faults``.
"""

import time
from collections.abc import Callable
from typing import Final

from simulator.directives import Directives
from simulator.output import Output

GARBAGE: Final = (
    b"[SandboxDebug] this line is not JSON",
    b'{"type":"system","subtype":"informational","content":"\xff\xfe\xc3("}',
    b'{"type":"assistant","message":{"role":"assistant","content":[{"type":"te',
    b'{"type":"system","subtype":"informational","content":"\x00\x01\x1b[2J\x07"}',
    b'["not","an","object"]',
    b"{}",
    b"\x1b[31mred\x1b[0m\x08\x08",
    b"[" * 10_000,
)
"""Not JSON, bad UTF-8, cut short, control characters, no object, an empty one, escape sequences, too deep."""
IN_LEDGER_BYTES: Final = 16 * 1024 * 1024
"""A longer line is written in pieces."""
_CHUNK: Final = 1 << 16
_STEP_S: Final = 0.02


def run(wanted: Directives, output: Output, pause: Callable[[float], None]) -> None:
    """What ``wanted`` asks for.  ``pause`` lets seconds pass and looks at stdin: what it raises ends a flood."""
    for number in range(wanted.garbage):
        output.line(GARBAGE[number % len(GARBAGE)])
    blank = b"\n \n\t\r\n" * (_CHUNK // 6)
    for start in range(0, wanted.blank, len(blank)):
        output.raw(blank[: wanted.blank - start])
    if wanted.flood is not None:
        _flood(*wanted.flood, output, pause)
    if wanted.endless:
        _endless(wanted.endless, output)


def huge_line(size: int, output: Output) -> None:
    """One valid line of ``size`` bytes."""
    head, tail = b'{"type":"tool_use_summary","summary":"', b'","preceding_tool_use_ids":[]}'
    left = max(0, size - len(head) - len(tail))
    if size <= IN_LEDGER_BYTES:
        output.line(head + b"x" * left + tail)
        return
    output.raw(head)
    filling = b"x" * _CHUNK
    for start in range(0, left, _CHUNK):
        output.raw(filling[: left - start])
    output.raw(tail + b"\n")


def _flood(size: int, line: int, rate: float, output: Output, pause: Callable[[float], None]) -> None:
    """``rate`` in MB/s."""
    head = b'{"type":"stream_event","event":{"type":"content_block_delta","index":0,"delta":'
    head += b'{"type":"text_delta","text":"'
    tail = b'"}},"session_id":"","parent_tool_use_id":null,"uuid":""}\n'
    left = line - len(head) - len(tail)
    one = head + b"y" * left + tail if left > 0 else b"y" * (line - 1) + b"\n"
    step = int(rate * 1e6 * _STEP_S) if rate else _CHUNK
    chunk = one * max(1, step // len(one))
    began, written = time.monotonic(), 0
    while written < size:
        output.raw(chunk)
        written += len(chunk)
        pause(max(0.0, began + written / (rate * 1e6) - time.monotonic()) if rate else 0.0)


def _endless(size: int, output: Output) -> None:
    output.raw(b'{"type":"assistant","message":"')
    filling = b"z" * _CHUNK
    for start in range(0, size, _CHUNK):
        output.raw(filling[: size - start])
