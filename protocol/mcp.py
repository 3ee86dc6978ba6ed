"""MCP servers as a client may name them: where they are, how they are reached, and nothing else.

The four kinds are those of the CLI.  ``http`` and ``sse`` servers are reached over the network by the CLI, a ``stdio``
server is a program that the CLI starts beside itself, an ``sdk`` server lives in the client, and the CLI talks to it
through ``mcp_message`` requests.  What a tenant may name is judged in ``broker.options.policy``.
"""

from typing import Annotated, TypeAlias

from msgspec import Meta, Struct

MCP_NAME = r"^(?!__proto__$)[A-Za-z0-9_-]{1,64}$(?!\n)"
"""Any name but the one key that JavaScript does not take for a key."""
NO_CONTROL = r"^[^\x00-\x1f\x7f]*$(?!\n)"

McpName = Annotated[str, Meta(pattern=MCP_NAME)]
Url = Annotated[str, Meta(max_length=2048, pattern=r"^https?://[^\s\x00-\x1f\x7f]+$(?!\n)")]
HeaderName = Annotated[str, Meta(max_length=128, pattern=r"^(?!__proto__$)[A-Za-z0-9!#$%&'*+.^_`|~-]+$(?!\n)")]
HeaderValue = Annotated[str, Meta(max_length=8192, pattern=NO_CONTROL)]
Headers = Annotated[dict[HeaderName, HeaderValue], Meta(max_length=64)]
Argument = Annotated[str, Meta(max_length=4096, pattern=r"^[^\x00]*$(?!\n)")]
EnvironmentName = Annotated[str, Meta(pattern=r"^(?!__proto__$)[A-Za-z_][A-Za-z0-9_]{0,127}$(?!\n)")]


class McpHttp(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag_field="type", tag="http"):
    """A streamable-HTTP MCP server.  ``headers`` may hold secrets; they are never shown in a text form."""

    url: Url
    headers: Headers = {}

    def __repr__(self) -> str:
        return f"McpHttp(url={self.url!r}, headers=[redacted])"


class McpSse(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag_field="type", tag="sse"):
    """An MCP server that speaks the older HTTP transport with server-sent events; ``headers`` as in ``McpHttp``."""

    url: Url
    headers: Headers = {}

    def __repr__(self) -> str:
        return f"McpSse(url={self.url!r}, headers=[redacted])"


class McpStdio(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag_field="type", tag="stdio"):
    """A program that the CLI starts on the broker's machine, as the session's user; ``env`` may hold secrets."""

    command: Annotated[str, Meta(min_length=1, max_length=4096, pattern=r"^[^\x00-\x1f\x7f]+$(?!\n)")]
    args: Annotated[list[Argument], Meta(max_length=64)] = []
    env: Annotated[dict[EnvironmentName, Argument], Meta(max_length=64)] = {}

    def __repr__(self) -> str:
        return f"McpStdio(command={self.command!r}, args=[{len(self.args)}], env=[redacted])"


class McpSdk(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag_field="type", tag="sdk"):
    """A server inside the client that names it; its ``mcp_message`` requests go to that client instance alone."""


McpServer: TypeAlias = McpHttp | McpSse | McpStdio | McpSdk
McpServers: TypeAlias = Annotated[dict[McpName, McpServer], Meta(max_length=32)]
