"""What a process is started with, as far as its version decides."""

import pytest

from broker.processes.program import Cli


@pytest.mark.parametrize("version", ["2.1.197", "2.1.328", "2.0.999", "1.9", "unknown", ""])
def test_an_older_cli_says_each_message_again(version: str) -> None:
    """It is the only way to know which messages its running turn has taken in."""
    assert Cli(("claude",), version, simulated=False).own_flags == ("--replay-user-messages",)


@pytest.mark.parametrize("version", ["2.1.329", "2.1.1000", "2.2.0", "3.0.0"])
def test_a_newer_cli_tells_it_by_itself(version: str) -> None:
    """And megabytes of pictures do not come back."""
    assert Cli(("claude",), version, simulated=False).own_flags == ()
