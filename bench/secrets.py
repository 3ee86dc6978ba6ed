"""What a result file must not hold of the arguments.  Pure.

Caller: ``bench.report``.
"""

import re
from collections.abc import Sequence
from typing import Final

HIDDEN: Final = "[redacted]"
SECRET: Final = "--token"  # noqa: S105 - a flag
_USER: Final = re.compile(r"//[^/@\s]*@")


def without_user(text: str) -> str:
    """An address without the name and password before its host."""
    return _USER.sub("//", text)


def without_secrets(argv: Sequence[str]) -> list[str]:
    """The command line with the token hidden.  A flag cannot be shortened, so the name alone tells."""
    shown: list[str] = []
    is_value = False
    for argument in argv:
        if is_value:
            shown.append(HIDDEN)
        elif argument.startswith(f"{SECRET}="):
            shown.append(f"{SECRET}={HIDDEN}")
        else:
            shown.append(without_user(argument))
        is_value = argument == SECRET and not is_value
    return shown
