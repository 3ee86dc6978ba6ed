"""What every session of a load says, and how long it waits for the answers; and the flags that tell so.

Callers: the commands of ``bench.traffic``.
"""

import argparse
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from websockets.exceptions import InvalidURI
from websockets.uri import parse_uri

from bench.arrivals import Options, options_of

DEADLINE_S: Final = 120.0
TOKEN_VARIABLE: Final = "BENCH_TOKEN"  # noqa: S105 - a name
MOST_SESSIONS: Final = 20_000


@dataclass(frozen=True)
class Script:
    """Seconds."""

    text: str
    think_s: float
    deadline_s: float
    """Of each single wait: for the welcome, the first delta, the end of the turn."""
    token: str | None
    options: Options


def script_of(arguments: argparse.Namespace) -> Script:
    """From the flags of ``add_arguments``."""
    directives = f"[[sim tokens={arguments.tokens} itl_ms={arguments.itl:g} ttft_ms={arguments.sim_ttft:g}]]"
    text = arguments.prompt if arguments.prompt is not None else f"Say something. {directives}"
    return Script(text, arguments.think_time, arguments.timeout, token_of(arguments), options_of(arguments.seed))


def token_of(arguments: argparse.Namespace) -> str | None:
    """``--token``, else the environment's; None for a broker that asks for none."""
    return arguments.token or os.environ.get(TOKEN_VARIABLE) or None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is measured, and what each session says."""
    parser.add_argument(
        "--url", type=url, metavar="ws://HOST:PORT/v1/chat/ws", help="a running broker (default: one of its own)"
    )
    parser.add_argument("--token", metavar="TOKEN",
                        help=f"for hello (default: ${TOKEN_VARIABLE}); never written to a result")  # fmt: skip
    parser.add_argument("--warm", type=count, metavar="N",
                        help="spares of a broker of its own (default: as many as sessions, at most 32)")  # fmt: skip
    say = parser.add_argument_group("what a session says")
    say.add_argument("--tokens", type=count, default=50, metavar="N", help="of each answer (default %(default)s)")
    say.add_argument("--itl", type=seconds, default=10.0, metavar="MS",
                     help="milliseconds from token to token (default %(default)s)")  # fmt: skip
    say.add_argument("--sim-ttft", type=seconds, default=0.0, metavar="MS",
                     help="milliseconds before the first one (default %(default)s)")  # fmt: skip
    say.add_argument("--prompt", metavar="TEXT", help="said in place of what asks the simulated CLI for such an answer")
    say.add_argument("--think-time", type=seconds, default=0.0, metavar="S",
                     help="from an answer to the next message (default %(default)s)")  # fmt: skip
    say.add_argument("--timeout", type=positive, default=DEADLINE_S, metavar="S",
                     help="for the welcome, the first delta, the rest of the answer (default %(default)s)")  # fmt: skip
    run = parser.add_argument_group("the run")
    run.add_argument("--warmup", type=seconds, default=0.0, metavar="S",
                     help="what is due in the first S seconds is not counted (default %(default)s)")  # fmt: skip
    run.add_argument("--grace", type=seconds, default=30.0, metavar="S",
                     help="for turns that are under way when --duration is over (default %(default)s)")  # fmt: skip
    run.add_argument("--progress", type=positive, default=5.0, metavar="S",
                     help="between two lines where stdout is no terminal (default %(default)s)")  # fmt: skip
    run.add_argument("--label", default="", metavar="TEXT", help="kept in the result and shown in its head")


def url(text: str) -> str:
    """A WebSocket address, for argparse."""
    try:
        parse_uri(text)
    except InvalidURI as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def _number(kind: type[int] | type[float], least: float, most: float) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no number") from None
        # Written so that NaN is refused, too.
        if not (least <= value <= most) or not math.isfinite(value):
            raise argparse.ArgumentTypeError(f"{text} is not between {least:g} and {most:g}")
        return value

    return read


count = _number(int, 1, 10_000_000)
sessions = _number(int, 1, MOST_SESSIONS)
seconds = _number(float, 0.0, 1e7)
positive = _number(float, 0.001, 1e7)
