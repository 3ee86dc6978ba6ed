"""A result file, read back and checked.

Callers: ``bench.results.compare_files``, ``bench.results.report_file``, ``bench.results.readme``.
"""

from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

SCHEMA: Final = 1
MOST_BYTES: Final = 512 * 2**20
Loads = Annotated[list[float], Meta(min_length=1)]


class NoResult(Exception):
    """Not a result file, or of a schema that this version does not read; the text names the file."""


class Series(Struct, rename={"p99_9": "p99.9"}):
    """Milliseconds."""

    n: int
    unit: str = "ms"
    title: str = ""
    min: float | None = None
    mean: float | None = None
    p50: float | None = None
    p90: float | None = None
    p95: float | None = None
    p99: float | None = None
    p99_9: float | None = None
    max: float | None = None
    samples: list[float] = []


class Target(Struct):
    """A bound that the bench itself sets."""

    bound: str
    holds: bool
    verdict: str = ""


class Interval(Struct, omit_defaults=True):
    """A line of the timeline."""

    t: float
    sessions: int
    turns: int
    failures: int
    rate: float | None = None
    ttft_p50: float | None = None
    ttft_p95: float | None = None


class Subject(Struct):
    """One program under test."""

    name: str
    series: dict[str, Series] = {}
    targets: list[Target] = []
    facts: dict[str, Any] = {}
    intervals: list[Interval] = []
    shows_intervals: bool = False
    generator_bound: list[str] = []


class CurvePoint(Struct):
    """A load of a sweep."""

    value: float
    turns_per_second: float
    failed: float
    figures: dict[str, float]
    broken: list[str]
    generator_bound: bool
    holds: bool


class Curve(Struct):
    """A sweep."""

    parameter: str
    bounds: list[str]
    points: list[CurvePoint]
    knee: float | None
    told: list[str]


class Host(Struct):
    """What it was measured on."""

    cpu: str
    cores: int
    kernel: str
    python: str
    load_before: Loads
    load_after: Loads
    memory_mb: int = 0


class Document(Struct):
    """The whole file."""

    schema: int
    bench: str
    started: str
    seed: int
    host: Host
    subjects: list[Subject]
    ended: str = ""
    label: str = ""
    interrupted: bool = False
    flags: dict[str, Any] = {}
    command: list[str] = []
    versions: dict[str, str] = {}
    violations: list[str] = []
    tables: list[str] = []
    ratios: dict[str, float] = {}
    targets: list[Target] = []
    notes: list[str] = []
    curve: Curve | None = None


class _Versioned(Struct):
    schema: int


def read(path: Path) -> dict[str, Any]:
    """The document, its missing parts empty.  Raises ``NoResult``, ``OSError``."""
    if path.stat().st_size > MOST_BYTES:
        raise NoResult(f"{path}: larger than {MOST_BYTES // 2**20} MiB")
    data = path.read_bytes()
    try:
        schema = msgspec.json.decode(data, type=_Versioned).schema
        if schema != SCHEMA:
            raise NoResult(f"{path}: schema {schema}; this version reads {SCHEMA}")
        found: dict[str, Any] = msgspec.to_builtins(msgspec.json.decode(data, type=Document))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise NoResult(f"{path}: no result of a bench: {error}") from error
    return found
