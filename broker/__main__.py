"""The command ``broker``: read the arguments, load what the command needs, turn a failure into an exit code.

Exit codes: 0 clean, 78 a mistake in the configuration (no port was opened), 69 no CLI can be found or started, 1
anything else.  Imports stand inside the commands: ``broker version`` and ``healthcheck`` load nothing of the server.
"""

import argparse
import errno
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from broker import __version__
from broker.errors import EXIT_CONFIG, EXIT_FAILURE, EXIT_NO_CLI, EXIT_OK, CliMissing, ConfigError

if TYPE_CHECKING:
    from broker.config.tree import Config

HEALTH_URL = "http://127.0.0.1:9464/readyz"
HEALTH_TIMEOUT_S = 3.0
CHAT_URL = "ws://127.0.0.1:8765/v1/chat/ws"
OUTER_ERRORS = (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES, errno.ENOSPC, errno.EAGAIN)
"""Ports and disks of this machine: told in one line."""
LOG_LEVELS = ("debug", "info", "warning", "error")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.  A mistake in the arguments exits 2, as argparse does."""
    arguments = parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = arguments.command
    try:
        return command(arguments)
    except (ConfigError, CliMissing) as error:
        return _told(error)
    except BaseExceptionGroup as group:
        # A task group wraps what its tasks raise; the operator's mistakes are told like any other, the rest goes up.
        mistakes, rest = group.split((ConfigError, CliMissing))
        if mistakes is None or rest is not None:
            raise
        return max(_told(error) for error in _leaves(mistakes))
    except OSError as error:
        if error.errno not in OUTER_ERRORS:
            raise
        print(f"broker: {error}", file=sys.stderr)
        return EXIT_FAILURE
    except KeyboardInterrupt:
        return EXIT_OK


def parser() -> argparse.ArgumentParser:
    """The arguments of every command."""
    top = argparse.ArgumentParser(prog="broker", description="A session broker for a warm pool of Claude Code CLIs.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text)
        made.set_defaults(command=run)
        return made

    one = command("serve", serve, "Start the broker.")
    one.add_argument("--config", type=Path, metavar="FILE", help="TOML file; see config-schema")
    one.add_argument("--listen", metavar="HOST:PORT", help="public listener; port 0: any free one")
    one.add_argument("--admin", metavar="HOST:PORT", help="metrics and probes; port 0: any free one")
    one.add_argument("--cli", metavar="auto|simulated|PATH", help="the program to keep warm")
    one.add_argument("--port-file", type=Path, metavar="FILE", help='gets {"listen": N, "admin": N} once both are open')
    one.add_argument("--log-level", choices=LOG_LEVELS, default="info")
    one = command("check-config", check_config, "Read a configuration as serve would, and say what is wrong with it.")
    one.add_argument("file", type=Path, metavar="FILE")
    command("config-schema", config_schema, "Print the JSON Schema of the configuration file.")
    one = command("token", token, "Make a token for a tenant and print it with its entry for tenants.toml.")
    one.add_argument("name", metavar="NAME", help="the tenant")
    one = command("chat", chat, "Talk to a broker from the terminal.")
    one.add_argument("url", nargs="?", default=CHAT_URL, metavar="URL", help=f"default: {CHAT_URL}")
    one.add_argument("--token", default=os.environ.get("BROKER_TOKEN"), help="default: the variable BROKER_TOKEN")
    which = one.add_mutually_exclusive_group()
    which.add_argument("--session", metavar="ID", help="open this conversation, or begin it")
    which.add_argument("--continue", action="store_true", dest="goes_on", help="the latest conversation")
    which.add_argument("--fork", metavar="ID", help="a branch of this conversation")
    which.add_argument("--observe", metavar="ID", help="read this conversation, and send nothing")
    for name, metavar in (
        ("model", "M"), ("system-prompt", "P"), ("append-system-prompt", "P"), ("permission-mode", "MODE"),
        ("effort", "LEVEL"), ("fallback-model", "M"),
    ):  # fmt: skip
        one.add_argument(f"--{name}", metavar=metavar)
    one.add_argument("--mcp-servers", metavar="JSON|@FILE", help='{"acme":{"type":"http","url":"..."}}')
    one.add_argument(
        "--option", action="append", default=[], metavar="NAME=JSON|@FILE", help="any option of hello, repeatable"
    )
    one.add_argument(
        "--credential-from", metavar="VARIABLE",
        help="send the credential in CLAUDE_CODE_OAUTH_TOKEN, ANTHROPIC_API_KEY or ANTHROPIC_AUTH_TOKEN",
    )  # fmt: skip
    command("version", version, "Print the version.")
    one = command("healthcheck", healthcheck, "Exit 0 when a probe of a running broker answers 200, else 1.")
    one.add_argument("url", nargs="?", default=HEALTH_URL, metavar="URL", help=f"default: {HEALTH_URL}")
    return top


def _told(error: BaseException) -> int:
    print(f"broker: {error}", file=sys.stderr)
    return EXIT_NO_CLI if isinstance(error, CliMissing) else EXIT_CONFIG


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


# -- commands --------------------------------------------------------------------------------------------------------


def serve(arguments: argparse.Namespace) -> int:
    """Run the broker until a signal ends it."""
    from broker.notify import Notify  # noqa: PLC0415
    from broker.sockets import listeners  # noqa: PLC0415

    notify, found = Notify.take(os.environ, os.getpid()), listeners.take(os.environ, os.getpid())
    flags = {"server.listen": arguments.listen, "admin.listen": arguments.admin, "cli.command": arguments.cli}
    flags |= found.flags
    config = checked(arguments.config, flags)
    import anyio  # noqa: PLC0415

    from broker import app, logs  # noqa: PLC0415

    logs.configure(arguments.log_level)
    options = {"use_uvloop": wants_uvloop(config)}
    anyio.run(
        app.run, config, config.cli.command, arguments.port_file, found, notify,
        partial(checked, arguments.config, flags),
        backend="asyncio", backend_options=options,
    )  # fmt: skip
    return EXIT_OK


def checked(path: Path | None, flags: dict[str, object]) -> "Config":
    """The configuration, with everything read that a start reads before it opens a port.  Raises ``ConfigError``."""
    from broker.auth import Authenticator  # noqa: PLC0415 - each command loads only what it needs
    from broker.config.settings import Settings  # noqa: PLC0415
    from broker.config.tree import load  # noqa: PLC0415

    config = load(path, os.environ, flags)
    Authenticator(Settings(config))
    wants_uvloop(config)
    return config


def wants_uvloop(config: "Config") -> bool:
    """Whether to run on uvloop.  Raises ``ConfigError`` when it is asked for and not installed."""
    is_installed = find_spec("uvloop") is not None
    if config.server.loop == "uvloop" and not is_installed:
        raise ConfigError("server.loop", "uvloop is not installed", "auto, asyncio, or install uvloop")
    return config.server.loop != "asyncio" and is_installed


def check_config(arguments: argparse.Namespace) -> int:
    """Read everything that a start would read; open nothing."""
    checked(arguments.file, {})
    print(f"{arguments.file}: ok")
    return EXIT_OK


def config_schema(_arguments: argparse.Namespace) -> int:
    """Print the schema."""
    from broker.config.tree import schema  # noqa: PLC0415

    sys.stdout.write(schema().decode())
    return EXIT_OK


def token(arguments: argparse.Namespace) -> int:
    """Print a fresh token once; only its hash is kept, by whoever puts it into the file."""
    from broker.auth import new_token  # noqa: PLC0415

    secret, lines = new_token(arguments.name)
    print(f"token (shown once, give it to {arguments.name}):\n{secret}\n\nfor tenants.toml:\n{lines}")
    return EXIT_OK


def chat(arguments: argparse.Namespace) -> int:
    """Talk until the end of input."""
    from broker.chat.commands import Mistake, json_of  # noqa: PLC0415
    from broker.chat.terminal import talk  # noqa: PLC0415

    names = ("model", "system_prompt", "append_system_prompt", "permission_mode", "effort", "fallback_model")
    options = {name: getattr(arguments, name) for name in names}
    try:
        if arguments.mcp_servers is not None:
            options["mcp_servers"] = json_of(arguments.mcp_servers, "--mcp-servers")
        for pair in arguments.option:
            name, _, value = pair.partition("=")
            options[name] = json_of(value, f"--option {name}")
    except Mistake as mistake:
        print(f"broker: {mistake}", file=sys.stderr)
        return EXIT_FAILURE
    session = {"mode": "new"}
    for mode, session_id in (("open", arguments.session), ("fork", arguments.fork), ("resume", arguments.observe)):
        session = {"mode": mode, "id": session_id} if session_id is not None else session
    session = {"mode": "continue"} if arguments.goes_on else session
    observes = arguments.observe is not None
    return talk(arguments.url, arguments.token, session, arguments.credential_from, options, observes=observes)


def version(_arguments: argparse.Namespace) -> int:
    """Print the version."""
    print(f"broker {__version__}")
    return EXIT_OK


def healthcheck(arguments: argparse.Namespace) -> int:
    """Ask a probe, for container runtimes that have no HTTP check of their own."""
    from http.client import HTTPConnection, HTTPException  # noqa: PLC0415
    from urllib.parse import urlsplit  # noqa: PLC0415

    try:
        url = urlsplit(arguments.url)
        if url.scheme != "http" or url.hostname is None:
            raise ValueError("an http:// URL is needed")
        connection = HTTPConnection(url.hostname, url.port, timeout=HEALTH_TIMEOUT_S)
        try:
            connection.request("GET", url.path or "/")
            response = connection.getresponse()
            body = response.read(512).decode(errors="replace").strip()
        finally:
            connection.close()
    except (OSError, HTTPException, ValueError) as error:
        print(f"broker: {arguments.url}: {error}", file=sys.stderr)
        return EXIT_FAILURE
    print(f"{response.status} {body}")
    return EXIT_OK if response.status == 200 else EXIT_FAILURE


if __name__ == "__main__":
    sys.exit(main())
