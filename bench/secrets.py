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
    """The command line with the token hidden, however the flag was shortened."""
    shown: list[str] = []
    is_value = False
    for argument in argv:
        name, equals, _ = argument.partition("=")
        is_secret = len(name) > len("--t") and SECRET.startswith(name)
        if is_value:
            shown.append(HIDDEN)
        elif is_secret and equals:
            shown.append(f"{name}={HIDDEN}")
        else:
            shown.append(without_user(argument))
        is_value = is_secret and not equals and not is_value
    return shown
