"""Which process of the CLI belongs to a client's conversation.

Callers: the end-to-end tests that kill one.
"""

import os
import signal

from tests.kit.broker import Broker
from tests.kit.client import Client
from tests.processes import read_process
from tests.waiting import eventually


def cli_pid(broker: Broker, client: Client) -> int:
    """The process of this client's conversation: its working directory names it."""
    session = client.welcome["cli"]["session_id"][:13]
    return min(process.pid for process in broker.descendants() if session in _folder(process.pid))


def _folder(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        return ""


async def killed(broker: Broker, client: Client) -> None:
    """Kill that process, and wait for its death: a dying one still takes a line."""
    pid = cli_pid(broker, client)
    os.kill(pid, signal.SIGKILL)
    await eventually(lambda: read_process(pid) is None)
