"""Types of single settings, with their bounds and an example for the error that refuses a wrong value.

Owner: none.  Callers: the structs of ``broker.config.tree`` and ``broker.config.profile``, and ``broker.auth``.
Seconds are floats; bytes and counts are whole numbers.
"""

from typing import Annotated

from msgspec import Meta

from broker.config.sources import SECRET


def says(text: str) -> Meta:
    """What a key means, for the JSON Schema."""
    return Meta(description=text)


# In Python "$" also matches before a newline at the very end; "$(?!\n)" is the end only, here and in a JSON Schema.
Seconds = Annotated[float, Meta(gt=0, le=86400)]
Grace = Annotated[float, Meta(ge=0, le=86400)]
Bytes = Annotated[int, Meta(ge=1024, le=2**40)]
Count = Annotated[int, Meta(ge=1, le=1_000_000)]
UserId = Annotated[int, Meta(ge=1, le=2**32 - 3)]
Listen = Annotated[
    str,
    Meta(pattern=r"^(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253}):[0-9]{1,5}$(?!\n)", examples=["127.0.0.1:8765"]),
]
FilePath = Annotated[str, Meta(min_length=1, max_length=4096, pattern=r"^[^\x00]+$(?!\n)", examples=["var"])]
Origin = Annotated[str, Meta(pattern=r"^https?://[^/\s?#@A-Z]+$(?!\n)", examples=["https://chat.example.com"])]
HostName = Annotated[
    str, Meta(pattern=r"^(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?$(?!\n)", examples=["chat.example.com"])
]
VariableName = Annotated[str, Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}$(?!\n)", examples=["HTTPS_PROXY"])]
VariableValue = Annotated[str, Meta(max_length=32768, pattern=r"^[^\x00]*$(?!\n)"), SECRET]
ProfileName = Annotated[str, Meta(max_length=32, pattern=r"^[a-z0-9]+([_-][a-z0-9]+)*$(?!\n)", examples=["default"])]
