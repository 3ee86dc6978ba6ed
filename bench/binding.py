"""``binding``: how long a warm process takes to become a tenant's with every late option at once, an MCP server too.

Caller: ``bench.__main__``.  The server is the tests' own (PyPI ``mcp``, streamable HTTP, a bearer header), in another
process.  A message follows hello without waiting; when it is told as started, everything was bound.
"""

import argparse
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import anyio

from bench import clis
from bench.api_process import api
from bench.arrivals import DEADLINE_S, TEXT
from bench.bounds import Bound
from bench.broker_process import ROOT, Broker, Setup, broker
from bench.children import child
from bench.clock import QUIET_BUSY, wait_quiet
from bench.report import Report, Subject
from bench.tenant import TenantFailed, connect

NAME: Final = "binding"
SUMMARY: Final = "all late options at once: hello -> welcome, hello -> first message written"
DESCRIPTION: Final = """\
Tenants arrive one by one at a broker with warm spares, each with every option that is bound late, among them one MCP
server that is reachable.  The real CLI runs in a network namespace that has only loopback, against
simulator.messages_api.
"""
TITLES: Final = {
    "welcome": "hello -> welcome: all answers but the MCP server's",
    "bound": "hello -> message written: the MCP server's too",
    "connect": "  of it: welcome -> MCP server connected",
    "ready": "  of it: hello decoded -> last bind answer",
    "bare_bound": "the same with a credential alone",
}
SERIES: Final = frozenset(TITLES)
TARGETS: Final = ("welcome_p50<=150ms", "bound_p50<=150ms")
SPARES: Final = 2
TOKEN: Final = "bench-mcp-token"  # noqa: S105 - of a server that lives as long as this program


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of this sub-command."""
    clis.add_arguments(parser)
    parser.add_argument("--n", type=int, default=20, metavar="N", help="arrivals (default %(default)s)")
    parser.add_argument("--quiet", type=float, default=20.0, metavar="S",
                        help="longest wait for a quiet machine before each (default %(default)s)")  # fmt: skip


def run(arguments: argparse.Namespace) -> Report:
    """Measure every chosen CLI.  Raises ``CliMissing``, ``ChildFailed``, ``TenantFailed``."""
    report = Report(NAME, vars(arguments), arguments.seed)
    for choice in clis.choices(arguments):
        report.subjects.append(anyio.run(_measure, choice, arguments.n, arguments.quiet))
    return report


async def _measure(choice: clis.Choice, count: int, quiet_s: float) -> Subject:
    subject = Subject(choice.name, targets=[Bound.parse(text) for text in TARGETS])
    for name, title in TITLES.items():
        subject.open_series(name, title)
    noisy = 0
    with TemporaryDirectory(prefix="bench-binding-") as folder:
        async with api() as stand_in, _mcp_server(Path(folder)) as url:
            env = {"ANTHROPIC_BASE_URL": stand_in.url, "CLAUDE_CODE_MAX_RETRIES": "0"}
            policy = (
                f'[policy]\nmcp_url_prefixes = ["{url}"]\nadd_dir_roots = ["{folder}"]\noptions = ["add_dirs", "betas"]'
            )
            async with broker(Setup(choice.setting, SPARES, env=env, tables=policy)) as running:
                for number in range(count):
                    for options in (_everything(number, url, folder), _credential(number)):
                        await running.wait_settled()
                        noisy += await wait_quiet(quiet_s) > QUIET_BUSY
                        await _arrive(running, options, subject)
    subject.facts["arrivals on a busy machine"] = (
        f"{noisy} of {2 * count} (more than {QUIET_BUSY:.0%} of all cores in use)"
    )
    subject.facts["options"] = ", ".join(_everything(0, "", ""))
    return subject


async def _arrive(running: Broker, options: Mapping[str, Any], subject: Subject) -> None:
    """One tenant, to the end of its turn."""
    async with connect(running.url) as tenant:
        tenant.hello(options, TEXT)
        welcome = await tenant.wait_welcome(DEADLINE_S)
        bound = await tenant.wait_started(DEADLINE_S)
        if tenant.start != "warm":
            raise TenantFailed(f"the start was {tenant.start!r}, not 'warm'")
        await tenant.wait_end(DEADLINE_S)
    if "mcp_servers" not in options:
        subject.series["bare_bound"].add(bound)
        return
    if tenant.mcp_errors:
        raise TenantFailed(f"the MCP server was not reached: {tenant.mcp_errors}")
    subject.series["welcome"].add(welcome)
    subject.series["bound"].add(bound)
    subject.series["connect"].add(bound - welcome)
    subject.series["ready"].add(tenant.ready_ms / 1e3)


def _credential(number: int) -> Mapping[str, Any]:
    return {"credentials": {"oauth_token": f"bench-bare-{number}"}}


def _everything(number: int, url: str, folder: str) -> Mapping[str, Any]:
    """Every option that is bound late."""
    return {
        "credentials": {"api_key": f"bench-binding-{number}"},
        "model": "opus",
        "max_thinking_tokens": 4096,
        "max_output_tokens": 8192,
        "effort": "high",
        "betas": ["context-1m-2025-08-07"],
        "system_prompt": f"You are the assistant of tenant {number}. Answer briefly.",
        "append_system_prompt": "Never guess.",
        "agents": {"reviewer": {"description": "Reviews code", "prompt": "You review code.", "tools": ["Read"]}},
        "json_schema": {"type": "object", "properties": {"answer": {"type": "string"}}},
        "permission_mode": "acceptEdits",
        "allowed_tools": ["Read", "Bash(echo:*)", "mcp__bench"],
        "disallowed_tools": ["WebFetch", "Bash(rm:*)"],
        "add_dirs": [folder],
        "settings": {"permissions": {"ask": ["Bash(ls:*)"]}, "outputStyle": "Explanatory"},
        "mcp_servers": {
            "bench": {"type": "http", "url": url, "headers": {"Authorization": f"Bearer {TOKEN}"}},
        },
    }


@asynccontextmanager
async def _mcp_server(folder: Path) -> AsyncIterator[str]:
    """A server on a free port; its URL.  Raises ``ChildFailed``."""
    port_file = folder / "port"
    argv = [sys.executable, "-m", "tests.kit.mcp_server", TOKEN, str(port_file)]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    async with child("the MCP server", argv, folder / "mcp.log", environ) as process:
        yield f"http://127.0.0.1:{int(await process.wait_file(port_file))}/mcp"
