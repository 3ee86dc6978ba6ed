"""A launch of any program, for tests of what becomes of a process.

Callers: ``tests.broker.processes.test_process``, also in a process of its own.
"""

import os
import uuid
from pathlib import Path

from broker.config.launch_profile import LaunchProfile
from broker.processes.cgroup import Cgroup
from broker.processes.launcher import Launch
from broker.processes.orphans import MARKER
from broker.processes.session_directory import SessionDirectory


def launch(folder: Path, *argv: str, cgroup: Cgroup | None = None) -> Launch:
    """``argv`` in ``folder``, with a marker of its own."""
    marker = uuid.uuid4().hex
    environment = {"PATH": os.environ["PATH"], MARKER: marker}
    directory, profile = SessionDirectory(folder), LaunchProfile("sonnet")
    return Launch(argv, environment, folder, marker, "", directory, profile, cgroup=cgroup or Cgroup())
