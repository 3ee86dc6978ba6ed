"""Plain HTTP on the WebSocket ports: probes, models, sessions, the chat page, metrics.

Owner: none, everything here is an answer to one request; callers: ``broker.sockets.server`` (public port) and
``broker.app`` (admin port) hand each request to ``respond`` from the ``process_request`` hook of websockets.  GET and
HEAD only: that hook never sees a body.  Nothing waits: static files are read once, at start.
"""

import gzip
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from email.utils import formatdate
from http import HTTPStatus
from pathlib import Path
from typing import Any, Protocol

import msgspec
from websockets.datastructures import Headers
from websockets.http11 import Request, Response

from broker import __version__
from broker.auth import Unauthorized
from broker.config.settings import Settings
from broker.config.tree import endpoint, is_loopback
from broker.metrics import Metrics
from broker.sockets.hosts import host_allowed, origin_allowed, own_names
from broker.sockets.listing import BadQuery, Listing
from protocol.errors import ConnectionRefused

CHAT_PATH = "/v1/chat/ws"
NOTHING: Mapping[str, str] = {}
STATIC = Path(__file__).parent.parent / "static"
RETRY_AFTER_S = 1
GZIP_FROM_BYTES = 1024
CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".json": "application/json",
    ".txt": "text/plain; charset=utf-8",
    ".woff2": "font/woff2",
    ".webmanifest": "application/manifest+json",
}
CONTENT_SECURITY_POLICY = "default-src 'self'; connect-src 'self'; base-uri 'none'; frame-ancestors 'none'"


class Readiness(Protocol):
    """What the probes ask of the program."""

    def ready(self) -> tuple[bool, str]:
        """Whether new sessions are welcome; if not, why, in a few words."""
        ...

    def pool(self) -> dict[str, dict[str, int]]:
        """Processes by profile and state."""
        ...

    def is_draining(self) -> bool:
        """Whether the program is on its way out."""
        ...


# -- answers ---------------------------------------------------------------------------------------------------------


def answer(
    status: int, body: bytes, content_type: str, headers: Mapping[str, str] = NOTHING, *, is_head: bool = False
) -> Response:
    """A complete response; HEAD gets the headers of GET and no body."""
    fields = Headers()
    fields["Date"] = formatdate(usegmt=True)
    fields["Connection"] = "close"
    if status != HTTPStatus.NOT_MODIFIED:
        fields["Content-Length"] = str(len(body))
        fields["Content-Type"] = content_type
    fields["X-Content-Type-Options"] = "nosniff"
    for name, value in ({"Cache-Control": "no-store"} | dict(headers)).items():
        fields[name] = value
    return Response(status, HTTPStatus(status).phrase, fields, b"" if is_head else body)


def json_answer(status: int, payload: Any, headers: Mapping[str, str] = NOTHING, *, is_head: bool = False) -> Response:
    """``payload`` as JSON."""
    body = msgspec.json.encode(payload) + b"\n"
    return answer(status, body, "application/json", headers, is_head=is_head)


def refusal(status: int, message: str, *, retry_after_s: int | None = None, is_head: bool = False) -> Response:
    """An error as JSON: 401 asks for a bearer token, 405 tells the methods, 503 and 429 say when to come back."""
    headers = {}
    if status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = "GET, HEAD"
    if retry_after_s is not None:
        headers["Retry-After"] = str(retry_after_s)
    error = {"code": HTTPStatus(status).name.lower(), "message": message}
    return json_answer(status, {"error": error}, headers, is_head=is_head)


# -- static files ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Asset:
    """A file of the chat page, as it is sent."""

    body: bytes
    content_type: str
    etag: str


def load_assets(folder: Path) -> dict[str, Asset]:
    """Every file below ``folder`` of a known type by its URL path, ``index.html`` as ``/``.  No folder, no files."""
    assets = {}
    for path in sorted(folder.rglob("*")):
        content_type = CONTENT_TYPES.get(path.suffix)
        name = path.relative_to(folder).as_posix()
        if content_type is None or not path.is_file() or "/." in f"/{name}":
            continue
        body = path.read_bytes()
        etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        assets["/" if name == "index.html" else f"/{name}"] = Asset(body, content_type, etag)
    return assets


def asset_answer(asset: Asset, if_none_match: Sequence[str], *, is_head: bool) -> Response:
    """The file, or 304 when the browser has it; it always asks, because names do not change with their content."""
    headers = {
        "ETag": asset.etag,
        "Cache-Control": "no-cache",
        "Content-Security-Policy": CONTENT_SECURITY_POLICY,
        "Referrer-Policy": "no-referrer",
    }
    known = {tag.strip().removeprefix("W/") for value in if_none_match for tag in value.split(",")}
    if asset.etag in known or "*" in known:
        return answer(HTTPStatus.NOT_MODIFIED, b"", asset.content_type, headers)
    return answer(HTTPStatus.OK, asset.body, asset.content_type, headers, is_head=is_head)


# -- the two ports ---------------------------------------------------------------------------------------------------


class Site:
    """What both ports answer.  ``listening_on`` must be told the real port before requests come."""

    def __init__(self, listen: str, settings: Settings, state: Readiness) -> None:
        self._listen_host = endpoint(listen)[0]
        self._settings = settings
        self._state = state
        self._own: frozenset[str] = frozenset()
        self._any_address_at = 0
        self._details = {"isolation": settings.now.pool.isolation, "scrub": settings.now.cli.scrub}

    def listening_on(self, port: int) -> None:
        """The port that was really bound."""
        self._own = own_names(self._listen_host, port)
        self._any_address_at = port if self._listen_host in ("0.0.0.0", "::") else 0  # noqa: S104 - compared, not bound

    def _probe(self, path: str, *, is_head: bool) -> Response | None:
        match path:
            case "/livez":
                return json_answer(HTTPStatus.OK, {"status": "ok"}, is_head=is_head)
            case "/readyz":
                return self._readyz(is_head=is_head)
            case "/health":
                is_ready = self._state.ready()[0]
                status = "draining" if self._state.is_draining() else "ok" if is_ready else "starting"
                health = {"status": status, "version": __version__, "pool": self._state.pool(), **self._details}
                return json_answer(HTTPStatus.OK, health, is_head=is_head)
            case _:
                return None

    def _readyz(self, *, is_head: bool) -> Response:
        is_ready, reason = self._state.ready()
        if is_ready:
            return json_answer(HTTPStatus.OK, {"status": "ready"}, is_head=is_head)
        payload, headers = {"status": "not_ready", "reason": reason}, {"Retry-After": str(RETRY_AFTER_S)}
        return json_answer(HTTPStatus.SERVICE_UNAVAILABLE, payload, headers, is_head=is_head)

    def _is_host_allowed(self, request: Request) -> bool:
        allowed = self._settings.now.server.allowed_hosts
        return host_allowed(request.headers.get_all("Host"), allowed, self._own, self._any_address_at)


class PublicSite(Site):
    """The public port.  ``respond`` gives None for what shall go on as a WebSocket handshake."""

    def __init__(
        self, settings: Settings, state: Readiness, static: Path = STATIC, listing: Listing | None = None
    ) -> None:
        super().__init__(settings.now.server.listen, settings, state)
        self._listing = listing
        self._assets = load_assets(static)

    def respond(self, request: Request) -> Response | None:
        """Answer a request, or None: Host and Origin are in order and the chat endpoint is meant."""
        path, is_head = request.path.partition("?")[0], request.method == "HEAD"
        if not self._is_host_allowed(request):
            return refusal(HTTPStatus.FORBIDDEN, "Host is not in server.allowed_hosts", is_head=is_head)
        if path == CHAT_PATH and request.method == "GET":
            own = self._own if is_loopback(self._listen_host) else frozenset()
            allowed = self._settings.now.server.allowed_origins
            if not origin_allowed(request.headers.get_all("Origin"), allowed, own):
                return refusal(HTTPStatus.FORBIDDEN, "Origin is not in server.allowed_origins")
            return None
        response = self._page(path, request, is_head=is_head)
        if response is None and path != CHAT_PATH:
            return refusal(HTTPStatus.NOT_FOUND, "no such page", is_head=is_head)
        if response is None or request.method not in ("GET", "HEAD"):
            return refusal(HTTPStatus.METHOD_NOT_ALLOWED, "GET and HEAD only", is_head=is_head)
        return response

    def _page(self, path: str, request: Request, *, is_head: bool) -> Response | None:
        if path == "/v1/models":
            models = [{"type": "model", "id": name} for name in self._settings.now.models]
            return json_answer(HTTPStatus.OK, {"data": models, "has_more": False}, is_head=is_head)
        if path == "/v1/sessions" and self._listing is not None:
            return _listed(self._listing, request, is_head=is_head)
        if asset := self._assets.get(path):
            return asset_answer(asset, request.headers.get_all("If-None-Match"), is_head=is_head)
        return self._probe(path, is_head=is_head)


def _listed(listing: Listing, request: Request, *, is_head: bool) -> Response:
    """The sessions of whoever asks, or why not."""
    authorization, query = request.headers.get_all("Authorization"), request.path.partition("?")[2]
    try:
        return json_answer(HTTPStatus.OK, listing.sessions(authorization, query), is_head=is_head)
    except Unauthorized:
        return refusal(HTTPStatus.UNAUTHORIZED, "the token is not valid", is_head=is_head)
    except ConnectionRefused as refused:
        return refusal(HTTPStatus.FORBIDDEN, refused.reason, is_head=is_head)
    except BadQuery as error:
        return refusal(HTTPStatus.BAD_REQUEST, str(error), is_head=is_head)


class AdminSite(Site):
    """The admin port.  Its Host is checked on loopback only: elsewhere scrapers use whatever name they know it by."""

    def __init__(self, settings: Settings, state: Readiness, metrics: Metrics) -> None:
        super().__init__(settings.now.admin.listen, settings, state)
        self._metrics = metrics

    def respond(self, request: Request) -> Response:
        """Answer a request; never a WebSocket."""
        path, is_head = request.path.partition("?")[0], request.method == "HEAD"
        if is_loopback(self._listen_host) and not self._is_host_allowed(request):
            return refusal(HTTPStatus.FORBIDDEN, "Host is not in server.allowed_hosts", is_head=is_head)
        response = self._scrape(request) if path == "/metrics" else self._probe(path, is_head=is_head)
        if response is None:
            return refusal(HTTPStatus.NOT_FOUND, "no such page", is_head=is_head)
        if request.method not in ("GET", "HEAD"):
            return refusal(HTTPStatus.METHOD_NOT_ALLOWED, "GET and HEAD only", is_head=is_head)
        return replace(response, body=b"") if is_head else response

    def _scrape(self, request: Request) -> Response:
        body, content_type = self._metrics.render(", ".join(request.headers.get_all("Accept")))
        headers = {"Vary": "Accept, Accept-Encoding"}
        if len(body) >= GZIP_FROM_BYTES and accepts_gzip(request.headers.get_all("Accept-Encoding")):
            headers["Content-Encoding"] = "gzip"
            body = gzip.compress(body, compresslevel=1)
        return answer(HTTPStatus.OK, body, content_type, headers)


def accepts_gzip(values: Sequence[str]) -> bool:
    """Whether ``Accept-Encoding`` names gzip with a weight above zero (RFC 9110 section 12.5.3)."""
    for value in values:
        for item in value.split(","):
            coding, *parameters = (part.strip().lower() for part in item.split(";"))
            if coding == "gzip":
                return not any(re.fullmatch(r"q=0(\.0{0,3})?", parameter) for parameter in parameters)
    return False
