"""How a CLI, real or simulated, is launched in tests: its flags, its own directories, an environment from nothing.

Callers: the conformance test's driver; any test that starts a CLI without the broker.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

FLAGS: Final = (
    "-p",
    "--input-format=stream-json",
    "--output-format=stream-json",
    "--verbose",
    "--include-partial-messages",
    "--permission-prompt-tool=stdio",
    "--setting-sources=",
    "--strict-mcp-config",
)
QUIET: Final = {
    "DISABLE_TELEMETRY": "1",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "DISABLE_AUTOUPDATER": "1",
    "DISABLE_ERROR_REPORTING": "1",
}
"""With these four the real CLI was never seen to contact anything but its base URL."""


class Home(NamedTuple):
    """The directories of one process; a resumed conversation is started in the same ones."""

    home: Path
    config: Path
    work: Path
    tmp: Path

    @classmethod
    def make(cls, root: Path) -> "Home":
        """Create the four under ``root``, mode 0700."""
        made = cls(root / "home", root / "home" / ".claude", root / "work", root / "tmp")
        for folder in made:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return made


def environment(home: Home, base_url: str, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The whole environment of the process; nothing of ours is inherited but PATH."""
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "LANG": "C.UTF-8",
        "HOME": str(home.home),
        "CLAUDE_CONFIG_DIR": str(home.config),
        "TMPDIR": str(home.tmp),
        "ANTHROPIC_BASE_URL": base_url,
        **QUIET,
        **(extra or {}),
    }
