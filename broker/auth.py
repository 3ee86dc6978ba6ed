"""Who is it?  Tokens to identities, from a watched file of hashes.

Owner: ``broker.app`` holds the one ``Authenticator`` and runs its ``run()``; callers: ``broker.sockets.server`` (before
the upgrade) and ``broker.sockets.connection`` (the token of hello).  Tokens are long random texts, so a plain SHA-256
is enough; the broker never holds a token longer than a call.  Replace ``tenants.toml`` by renaming over it: a file that
is seen half written and happens to be valid counts as it stands.  Over 300 lines because the file's form, its reading
and the answers from it change together.
"""

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import anyio
import msgspec
import structlog
from msgspec import Meta, Struct

from broker.config import sources
from broker.config.limits import Limits
from broker.config.policy import Policy, in_force
from broker.config.settings import Settings
from broker.config.tree import CREDENTIAL_VARIABLES, Config
from broker.config.types import FilePath
from broker.errors import ConfigError
from protocol.codes import CloseCode
from protocol.errors import ConnectionRefused
from protocol.frames import Role
from protocol.options import Credentials

log = structlog.get_logger(__name__)

WATCH_INTERVAL_S = 1.0
MAX_TOKEN_CHARS = 4096
BEARER_SUBPROTOCOL = "broker.bearer."

TenantName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$(?!\n)", examples=["acme"])]
Subject = Annotated[str, Meta(pattern=r"^(\*|[A-Za-z0-9][A-Za-z0-9._:@-]{0,127})$(?!\n)", examples=["alice, or *"])]
TokenHash = Annotated[str, Meta(pattern=r"^sha256:[0-9a-f]{64}$(?!\n)", examples=["sha256:HEX"]), sources.SECRET]


class Unauthorized(ConnectionRefused):
    """No token, an unknown one, or something that is no token: HTTP 401 before the upgrade, close 4501 after it."""

    def __init__(self) -> None:
        super().__init__(CloseCode.UNAUTHORIZED)


class Identity(Struct, frozen=True):
    """Who a connection is.  Subject ``*``: a tenant's server, whose hello names the subject.

    ``credentials`` is set only where the policy says that the server pays.  ``key`` is the digest of the token; it
    serves ``still_valid`` and appears in no text form.
    """

    tenant: str
    subject: str
    max_role: Role
    policy: Policy
    credentials: Credentials | None = None
    limits: Limits = Limits()
    key: bytes = b""

    def __repr__(self) -> str:
        return f"Identity(tenant={self.tenant!r}, subject={self.subject!r}, max_role={self.max_role!r})"


class TokenEntry(Struct, frozen=True, forbid_unknown_fields=True):
    """One token of a tenant."""

    hash: TokenHash
    subject: Subject = "*"
    max_role: Literal["controller", "observer"] = "controller"


class Tenant(Struct, frozen=True, forbid_unknown_fields=True):
    """``[tenants.NAME]``.  ``policy`` and ``limits`` name only what differs from the broker's own."""

    tokens: list[TokenEntry] = []
    policy: dict[str, Any] = {}
    limits: dict[str, Any] = {}
    credentials: Annotated[dict[str, Annotated[str, sources.SECRET]] | None, sources.SECRET] = None
    credential_file: FilePath | None = None


class TenantsFile(Struct, frozen=True, forbid_unknown_fields=True):
    """``tenants.toml``."""

    tenants: dict[TenantName, Tenant] = {}


Table = dict[bytes, Identity]
Stamp = tuple[int, int, int] | None
_NOBODY = bytes(32)


class Authenticator:
    """Tokens to identities, always after the newest file that made sense."""

    def __init__(self, settings: Settings) -> None:
        """Read the file when the mode asks for it.  Raises ``ConfigError``."""
        self._settings, config = settings, settings.now
        self._path = Path(config.auth.file)
        self._open = config.auth.mode == "none"
        self._listeners: list[Callable[[], None]] = []
        self._stamps: dict[Path, Stamp] = {}
        self._table: Table = {} if self._open else read_tenants(self._path, config, self._stamps)

    def authenticate(self, token: str | None) -> Identity:
        """The identity of ``token``.  Raises ``Unauthorized``; an unknown, a wrong and no token look alike.

        Only digests are compared, so the time taken tells nothing about how much of a guess was right.  With
        ``auth.mode = "none"`` there are no tokens to compare with: everybody is the tenant ``local``.
        """
        if self._open:
            now = self._settings.now
            return Identity("local", "*", "controller", _in_force(now.policy, now), limits=now.limits)
        if token is None or len(token) > MAX_TOKEN_CHARS:
            raise Unauthorized
        digest = _digest(token)
        identity = self._table.get(digest)
        if not hmac.compare_digest(digest, _NOBODY if identity is None else identity.key) or identity is None:
            raise Unauthorized
        return identity

    def still_valid(self, identity: Identity) -> bool:
        """Whether the identity's token still means the same tenant, subject and role.

        Changed policies and limits do not revoke: they hold from the next connection on.
        """
        if self._open:
            return True
        now = self._table.get(identity.key)
        return now is not None and _rights(now) == _rights(identity)

    def on_revoked(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` whenever identities stopped being valid; it asks ``still_valid`` for each of its own."""
        self._listeners.append(listener)

    async def run(self, interval_s: float = WATCH_INTERVAL_S) -> None:
        """Watch the file for ever.  Cancel at any time, nothing is lost."""
        while not self._open:
            await anyio.sleep(interval_s)
            self.poll()

    def poll(self) -> bool:
        """Look once; True when a changed file was taken.  A broken one is logged once and the last good one stays."""
        if all(_stamp(path) == stamp for path, stamp in self._stamps.items()):
            return False
        return self.reread()

    def reread(self) -> bool:
        """As ``poll``, although no file has changed: the policy above it has."""
        if self._open:
            return False
        stamps: dict[Path, Stamp] = {}
        try:
            table = read_tenants(self._path, self._settings.now, stamps)
        except ConfigError as error:
            # A file that the rejected one named is watched from now on too: to mend it may be all that is missing.
            self._stamps = {path: _stamp(path) for path in self._stamps} | stamps
            log.warning("auth.tenants_rejected", key=error.path, reason=error.message, allowed=error.allowed)
            return False
        self._stamps = stamps
        revoked = [old for key, old in self._table.items() if key not in table or _rights(table[key]) != _rights(old)]
        self._table = table
        log.info("auth.tenants_loaded", tokens=len(table), revoked=len(revoked))
        if revoked:
            for listener in self._listeners:
                listener()
        return True


def _rights(identity: Identity) -> tuple[str, str, Role]:
    return identity.tenant, identity.subject, identity.max_role


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def _stamp(path: Path) -> Stamp:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


# -- the file --------------------------------------------------------------------------------------------------------


def read_tenants(path: Path, config: Config, stamps: dict[Path, Stamp]) -> Table:
    """Read ``tenants.toml``: the identities by digest.  Raises ``ConfigError``.

    ``stamps`` is filled, also on failure, with every file that was read, as it stood just before the reading.
    """
    table: Table = {}
    for name, tenant in sources.build(TenantsFile, _read(path, stamps)).tenants.items():
        where = f"tenants.{name}"
        policy = _policy(tenant, config, where)
        limits = sources.build(Limits, {**msgspec.to_builtins(config.limits), **tenant.limits}, f"{where}.limits")
        credentials = _credentials(tenant, where, policy, config, path.parent, stamps)
        for index, entry in enumerate(tenant.tokens):
            key = bytes.fromhex(entry.hash.removeprefix("sha256:"))
            if key in table:
                raise ConfigError(f"{where}.tokens[{index}].hash", "is used twice", "one entry per token")
            table[key] = Identity(name, entry.subject, entry.max_role, policy, credentials, limits, key)
    return table


def _read(path: Path, stamps: dict[Path, Stamp]) -> sources.Layer:
    stamps[path] = _stamp(path)
    return sources.toml_layer(path)


def _policy(tenant: Tenant, config: Config, where: str) -> Policy:
    policy = sources.build(Policy, {**msgspec.to_builtins(config.policy), **tenant.policy}, f"{where}.policy")
    if policy.credentials == "client" and (found := [name for name in CREDENTIAL_VARIABLES if name in config.cli.env]):
        raise ConfigError(
            f"{where}.policy.credentials", f"is client, but cli.env.{found[0]} holds a credential",
            "server, or no such variable",
        )  # fmt: skip
    return _in_force(policy, config)


def _in_force(policy: Policy, config: Config) -> Policy:
    return in_force(policy, is_scrubbed=config.cli.scrub == "on")  # auto was resolved by ``broker.app``


def _credentials(
    tenant: Tenant, where: str, policy: Policy, config: Config, folder: Path, stamps: dict[Path, Stamp]
) -> Credentials | None:
    if tenant.credentials is not None and tenant.credential_file is not None:
        raise ConfigError(f"{where}.credential_file", "stands beside credentials", "one of the two")
    if tenant.credentials is None and tenant.credential_file is None:
        if policy.credentials == "server" and not any(name in config.cli.env for name in CREDENTIAL_VARIABLES):
            raise ConfigError(where, "has no credential, but its policy says that the server pays", "credential_file")
        return None
    if policy.credentials == "client":
        raise ConfigError(f"{where}.policy.credentials", "is client, but the tenant has a credential here", "server")
    if tenant.credential_file is None:
        return _one_credential(tenant.credentials, f"{where}.credentials")
    file = folder / tenant.credential_file
    return _one_credential(_read(file, stamps), str(file))


def _one_credential(raw: object, where: str) -> Credentials:
    try:
        return msgspec.convert(raw, Credentials)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        allowed = "exactly one of oauth_token, api_key, auth_token, and perhaps base_url"
        raise ConfigError(where, "is not a credential", allowed) from None


# -- tokens on the way in --------------------------------------------------------------------------------------------


def presented_token(authorization: Sequence[str], subprotocols: Sequence[str]) -> str | None:
    """The token of the request: ``Authorization`` first, then ``Sec-WebSocket-Protocol``; None when neither is there.

    Arguments are all values of either header.  Raises ``Unauthorized``: what is malformed is never skipped.
    """
    from_header = bearer_from_headers(authorization)
    from_subprotocol = bearer_from_subprotocols(subprotocols)
    return from_header if from_header is not None else from_subprotocol


def bearer_from_headers(values: Sequence[str]) -> str | None:
    """The token of ``Authorization: Bearer TOKEN`` (RFC 6750 section 2.1).  Raises ``Unauthorized``."""
    if not values:
        return None
    match = re.fullmatch(r"[Bb][Ee][Aa][Rr][Ee][Rr] +([A-Za-z0-9._~+/-]+=*)", values[0].strip(" \t"))
    if match is None or len(values) > 1:
        raise Unauthorized
    return match[1]


def bearer_from_subprotocols(values: Sequence[str]) -> str | None:
    """The token of a ``broker.bearer.BASE64URL`` entry, without padding.  Raises ``Unauthorized``."""
    entries = [entry.strip(" \t") for value in values for entry in value.split(",")]
    found = [entry for entry in entries if entry.lower().startswith(BEARER_SUBPROTOCOL.rstrip("."))]
    if not found:
        return None
    text = found[0].removeprefix(BEARER_SUBPROTOCOL)
    if len(found) > 1 or text == found[0] or not re.fullmatch(r"[A-Za-z0-9_-]+", text):
        raise Unauthorized
    try:
        token = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode("ascii")
    except (binascii.Error, UnicodeDecodeError):
        raise Unauthorized from None
    if not re.fullmatch(r"[\x21-\x7e]+", token):
        raise Unauthorized
    return token


def new_token(tenant: str) -> tuple[str, str]:
    """A fresh token and its lines for ``tenants.toml``.  Raises ``ConfigError`` for a name that is none."""
    sources.build(TenantsFile, {"tenants": {tenant: {}}})
    token = f"brk_{secrets.token_urlsafe(32)}"
    entry = f'{{hash = "sha256:{_digest(token).hex()}", subject = "*", max_role = "controller"}}'
    header = tenant if re.fullmatch(r"[A-Za-z0-9_-]+", tenant) else f'"{tenant}"'
    return token, f"[tenants.{header}]\ntokens = [{entry}]"
