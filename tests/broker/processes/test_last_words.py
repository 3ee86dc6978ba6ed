"""What is told of a CLI that did not start."""

import pytest

from broker.processes.last_words import MAX_CHARS, last_words


@pytest.mark.parametrize(
    ("stderr", "told"),
    [
        ("", ""),
        ("\n \n", ""),
        ("error: unknown option '--nope'\n", "error: unknown option '--nope'"),
        ("Warning: custom betas\nError: Settings file not found: /srv/broker/var/x.json\n",
         "Error: Settings file not found: [path]"),
        ("--dangerously-skip-permissions cannot be used with root/sudo privileges for security reasons\n",
         "--dangerously-skip-permissions cannot be used with root/sudo privileges for security reasons"),
        ("No conversation found with session ID: 7\n", "No conversation found with session ID: 7"),
        ("12 | let a = 1;\n         ^\nerror: bad 'x', in /a/b.js:3:4\n    at run (/a/b.js:3:4)\n\nBun v1.3\n",
         "error: bad 'x', in [path]:3:4"),
        ("first\nlast\n    at x (/a/b.js)\n", "last"),
        ("a\x1b[31mred\x00", "a [31mred"),
    ],
)  # fmt: skip
def test_one_line_without_paths(stderr: str, told: str) -> None:
    """The line that names an error, else the last one; no path of this machine, no control character."""
    assert last_words(stderr) == told


def test_it_is_short() -> None:
    """A CLI that dumps its source says no more than others."""
    assert len(last_words("error " + "x" * 10_000)) == MAX_CHARS
