"""Plain HTTP on both ports, through a real server, and the pure checks of Host and Origin."""

import asyncio
import gzip
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import InvalidStatus
from websockets.http11 import Request, Response

from broker import __version__
from broker.config.settings import Settings
from broker.config.tree import Config, load
from broker.metrics import Metrics
from broker.sockets.hosts import host_allowed, origin_allowed, own_names
from broker.sockets.http import (
    CHAT_PATH,
    AdminSite,
    PublicSite,
    accepts_gzip,
    load_assets,
    refusal,
)


class Program:
    """Stands where the running program stands: its readiness is set by the test."""

    def __init__(self) -> None:
        self.reason = ""
        self.draining = False

    def ready(self) -> tuple[bool, str]:
        return not self.reason, self.reason

    def pool(self) -> dict[str, dict[str, int]]:
        return {"default": {"warm": 4}}

    def is_draining(self) -> bool:
        return self.draining


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        assert self.headers["content-type"] == "application/json"
        return msgspec.json.decode(self.body)


@dataclass
class Port:
    """A listening site."""

    port: int
    program: Program = field(default_factory=Program)

    async def fetch(self, path: str, method: str = "GET", *, host: str | None = None, **headers: str) -> Reply:
        lines = [f"{method} {path} HTTP/1.1"]
        if host != "":
            lines.append(f"Host: {host or f'127.0.0.1:{self.port}'}")
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        return await self.raw("\r\n".join([*lines, "", ""]).encode("latin-1"))

    async def raw(self, request: bytes) -> Reply:
        with anyio.fail_after(5):
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            try:
                writer.write(request)
                data = await reader.read()
            finally:
                writer.close()
                await writer.wait_closed()
        head, _, body = data.partition(b"\r\n\r\n")
        status, *fields = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in fields)}
        return Reply(int(status.split()[1]), headers, body)


Make = Callable[[Config, Program], PublicSite | AdminSite]


async def echo(socket: ServerConnection) -> None:
    async for message in socket:
        await socket.send(message)


@asynccontextmanager
async def listening(make: Make, **settings: Any) -> AsyncIterator[Port]:
    config = load(None, {}, {name.replace("__", "."): value for name, value in settings.items()})
    program = Program()
    site = make(config, program)

    def process_request(_connection: ServerConnection, request: Request) -> Response | None:
        return site.respond(request)

    async with serve(echo, "127.0.0.1", 0, process_request=process_request, compression=None) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        site.listening_on(port)
        yield Port(port, program)


def public(static: Path) -> Make:
    return lambda config, program: PublicSite(Settings(config), program, static)


def admin(config: Config, program: Program) -> AdminSite:
    return AdminSite(Settings(config), program, Metrics())


@pytest.fixture
def static(tmp_path: Path) -> Path:
    """A page of three files, and what must not be served."""
    folder = tmp_path / "static"
    (folder / "img").mkdir(parents=True)
    (folder / "index.html").write_text("<!doctype html><title>chat</title>")
    (folder / "app.js").write_text("export {}")
    (folder / "img" / "a.svg").write_text("<svg/>")
    (folder / "notes.md").write_text("not served")
    (folder / ".hidden.js").write_text("not served")
    (tmp_path / "secret.txt").write_text("not served")
    return folder


# -- probes ----------------------------------------------------------------------------------------------------------


async def test_the_probes_follow_the_program(static: Path) -> None:
    """Alive is always yes; ready is 503 with Retry-After until it is; health tells the state, version and pool."""
    for make in (public(static), admin):
        async with listening(make) as port:
            assert (await port.fetch("/livez")).json() == {"status": "ok"}
            assert (await port.fetch("/readyz")).json() == {"status": "ready"}
            port.program.reason = "no warm process yet"
            not_ready = await port.fetch("/readyz?verbose")
            assert (not_ready.status, not_ready.headers["retry-after"]) == (503, "1")
            assert not_ready.json() == {"status": "not_ready", "reason": "no warm process yet"}
            assert (await port.fetch("/livez")).status == 200
            health = {"status": "starting", "version": __version__, "pool": {"default": {"warm": 4}},
                      "isolation": "none", "scrub": "auto"}  # fmt: skip
            assert (await port.fetch("/health")).json() == health
            port.program.draining = True
            assert (await port.fetch("/health")).json()["status"] == "draining"


async def test_models_are_those_of_the_configuration(static: Path) -> None:
    """``/v1/models`` lists what the operator configured."""
    async with listening(public(static), models='["a", "b"]') as port:
        models = (await port.fetch("/v1/models")).json()
        assert [model["id"] for model in models["data"]] == ["a", "b"]


@pytest.mark.parametrize("path", ["/nothing", "/v1/sessions", "/metrics", "/v1/chat/ws/", "//", "*", "/../secret.txt",
                                  "/%2e%2e/secret.txt", "/static/app.js", "/notes.md", "/.hidden.js", "/index.html",
                                  "http://127.0.0.1/livez"])  # fmt: skip
async def test_other_paths_are_not_found(static: Path, path: str) -> None:
    """Everything else on the public port is a JSON 404."""
    async with listening(public(static)) as port:
        reply = await port.fetch(path)
        assert (reply.status, reply.json()["error"]["code"]) == (404, "not_found")


async def test_only_get_and_head(static: Path) -> None:
    """Other methods are 405 with Allow where there is a page, 404 where there is none."""
    for make, path in ((public(static), "/"), (public(static), CHAT_PATH), (admin, "/metrics")):
        async with listening(make) as port:
            for method in ("POST", "PUT", "DELETE", "OPTIONS", "FOO"):
                reply = await port.fetch(path, method, Content_Length="0")
                assert (reply.status, reply.headers["allow"]) == (405, "GET, HEAD")
                assert (await port.fetch("/nothing", method)).status == 404


async def test_head_is_get_without_its_body(static: Path) -> None:
    """HEAD gets the same status and headers, and no body, from every page."""
    for make, paths in (
        (public(static), ["/", "/app.js", "/livez", "/health", "/v1/models", "/nothing"]), (admin, ["/metrics", "/x"])
    ):  # fmt: skip
        async with listening(make) as port:
            for path in paths:
                got, head = await port.fetch(path), await port.fetch(path, "HEAD")
                assert (head.status, head.body) == (got.status, b"")
                got.headers.pop("date"), head.headers.pop("date")
                if path != "/metrics":  # its length moves between two scrapes
                    assert head.headers == got.headers
                    assert int(got.headers["content-length"]) == len(got.body)


# -- the page --------------------------------------------------------------------------------------------------------


async def test_the_page_and_its_assets(static: Path) -> None:
    """Files are served with their type, an ETag, no sniffing and a policy that lets nothing foreign in."""
    async with listening(public(static)) as port:
        for path, content_type, body in (
            ("/", "text/html; charset=utf-8", b"<!doctype html><title>chat</title>"),
            ("/?session=1", "text/html; charset=utf-8", b"<!doctype html><title>chat</title>"),
            ("/app.js", "text/javascript; charset=utf-8", b"export {}"),
            ("/img/a.svg", "image/svg+xml", b"<svg/>"),
        ):
            reply = await port.fetch(path)
            assert (reply.status, reply.headers["content-type"], reply.body) == (200, content_type, body)
            assert reply.headers["x-content-type-options"] == "nosniff"
            assert reply.headers["cache-control"] == "no-cache"
            assert reply.headers["content-security-policy"].startswith("default-src 'self'; connect-src 'self'")


async def test_a_known_etag_is_not_sent_again(static: Path) -> None:
    """304 without a body for the ETag that the browser has; a changed file has another."""
    async with listening(public(static)) as port:
        etag = (await port.fetch("/app.js")).headers["etag"]
        for value in (etag, f"W/{etag}", f'"x", {etag}', "*"):
            reply = await port.fetch("/app.js", If_None_Match=value)
            assert (reply.status, reply.body, reply.headers["etag"]) == (304, b"", etag)
        assert (await port.fetch("/app.js", If_None_Match='"x"')).status == 200
    (static / "app.js").write_text("export {} // changed")
    assert load_assets(static)["/app.js"].etag != etag


async def test_without_a_page_there_is_none(tmp_path: Path) -> None:
    """A missing folder is no error: the port serves everything else."""
    async with listening(public(tmp_path / "nothing")) as port:
        assert (await port.fetch("/")).status == 404
        assert (await port.fetch("/livez")).status == 200


# -- metrics ---------------------------------------------------------------------------------------------------------


async def test_metrics_by_accept_and_encoding() -> None:
    """The exposition follows Accept, and is compressed for who accepts it."""
    async with listening(admin) as port:
        plain = await port.fetch("/metrics")
        assert plain.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert b"broker_turns_total" in plain.body
        assert "content-encoding" not in plain.headers
        packed = await port.fetch(
            "/metrics", Accept="application/openmetrics-text;version=1.0.0", Accept_Encoding="gzip"
        )
        assert packed.headers["content-encoding"] == "gzip"
        assert packed.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
        assert gzip.decompress(packed.body).endswith(b"# EOF\n")
        assert len(packed.body) < len(plain.body) / 3


async def test_the_admin_port_speaks_no_websocket() -> None:
    """A handshake on the admin port is answered like any other request."""
    async with listening(admin) as port:
        for path, status in (("/metrics", 200), (CHAT_PATH, 404), ("/", 404)):
            with pytest.raises(InvalidStatus) as caught:
                await connect(f"ws://127.0.0.1:{port.port}{path}").__aenter__()
            assert caught.value.response.status_code == status


@pytest.mark.parametrize(
    ("values", "accepted"),
    [([], False), (["gzip"], True), (["deflate, GZIP;q=0.5"], True), (["gzip;q=0"], False), (["gzip; q=0.000"], False),
     (["br"], False), (["br", "gzip"], True), (["*"], False), (["gzip;q=0.001"], True), (["gzipped"], False)],
)  # fmt: skip
def test_gzip_is_asked_for(values: list[str], accepted: bool) -> None:
    """Only a gzip with a weight above zero counts."""
    assert accepts_gzip(values) is accepted


# -- Host and Origin -------------------------------------------------------------------------------------------------


async def test_a_websocket_goes_on(static: Path) -> None:
    """The chat endpoint reaches the handshake, with and without a query, from its own page and without an Origin."""
    async with listening(public(static)) as port:
        for origin in (None, f"http://127.0.0.1:{port.port}", f"http://localhost:{port.port}"):
            async with connect(f"ws://127.0.0.1:{port.port}{CHAT_PATH}?x=1", origin=origin) as socket:  # type: ignore[arg-type]
                await socket.send("hello")
                assert await socket.recv() == "hello"


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1:{port}", "http://127.0.0.1", ""])
async def test_a_foreign_origin_is_refused(static: Path, origin: str) -> None:
    """403 before the upgrade for a page of anybody else."""
    async with listening(public(static)) as port:
        url = f"ws://127.0.0.1:{port.port}{CHAT_PATH}"
        headers = {"Origin": origin.format(port=port.port)}
        with pytest.raises(InvalidStatus) as caught:
            await connect(url, additional_headers=headers).__aenter__()
        assert caught.value.response.status_code == 403


@pytest.mark.parametrize("host", ["", "evil.example", "127.0.0.1", "127.0.0.1:1", "localhost.evil.example:{port}",
                                  "127.0.0.1:{port}@evil", "127.0.0.1:{port}\r\nHost: evil", "[::1", "é"])  # fmt: skip
async def test_a_foreign_host_is_refused(static: Path, host: str) -> None:
    """A missing, foreign, doubled or malformed Host is 403 on every page of both loopback ports."""
    for make, paths in ((public(static), ("/", "/livez", CHAT_PATH)), (admin, ("/metrics",))):
        async with listening(make) as port:
            for path in paths:
                reply = await port.fetch(path, host=host.format(port=port.port))
                assert (reply.status, reply.json()["error"]["code"]) == (403, "forbidden")


async def test_an_allowed_host_is_answered(static: Path) -> None:
    """A configured name is answered, with any port unless the entry names one; names do not depend on case."""
    async with listening(public(static), server__allowed_hosts='["chat.example", "b.example:99"]') as port:
        for host, status in (("Chat.Example", 200), ("chat.example:1", 200), ("b.example:99", 200), ("b.example", 403)):
            assert (await port.fetch("/livez", host=host)).status == status


async def test_the_admin_port_elsewhere_has_any_name(static: Path) -> None:
    """An admin listener that is not loopback answers a scraper whatever name it uses."""
    async with listening(admin, admin__listen="0.0.0.0:9464") as port:
        assert (await port.fetch("/metrics", host="broker.monitoring.svc:9464")).status == 200


@pytest.mark.parametrize(
    ("listen", "host", "allowed"),
    [("127.0.0.1", "localhost:80", True), ("127.0.0.1", "localhost", True), ("127.0.0.1", "[::1]", True),
     ("::1", "[::1]:80", True), ("0.0.0.0", "10.1.2.3:80", True), ("0.0.0.0", "[fe80::1]:80", True),
     ("0.0.0.0", "10.1.2.3", False), ("0.0.0.0", "10.1.2.3:81", False), ("0.0.0.0", "localhost:80", False),
     ("0.0.0.0", "rebound.example:80", False), ("10.1.2.3", "10.1.2.3:80", True), ("10.1.2.3", "10.1.2.4:80", False)],
)  # fmt: skip
def test_hosts_by_listener(listen: str, host: str, allowed: bool) -> None:
    """Loopback has its three names; all interfaces any address at the port, but no name; an address only itself."""
    everywhere = 80 if listen in ("0.0.0.0", "::") else 0
    assert host_allowed([host], (), own_names(listen, 80), everywhere) is allowed


@given(st.lists(st.text(max_size=30), max_size=3))
def test_no_header_raises(values: list[str]) -> None:
    """Any values of Host and Origin give yes or no."""
    assert host_allowed(values, (), own_names("127.0.0.1", 1)) in (True, False)
    assert origin_allowed(values, (), own_names("127.0.0.1", 1)) is (not values)


def test_origins_by_listener() -> None:
    """A listener that is not loopback allows only the list; a loopback one its own pages too."""
    own = own_names("127.0.0.1", 8765)
    for host in ("127.0.0.1", "localhost", "[::1]"):
        assert origin_allowed([f"http://{host}:8765"], (), own)
        assert not origin_allowed([f"http://{host}:8765"], (), frozenset())
    assert origin_allowed(["https://chat.example"], {"https://chat.example"}, own)
    assert not origin_allowed(["https://chat.example"] * 2, {"https://chat.example"}, own)
    assert not origin_allowed(["http://127.0.0.1:8766"], (), own)


# -- answers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("status", "header"), [(401, "WWW-Authenticate"), (405, "Allow"), (503, "Retry-After")])
def test_refusals_say_what_to_do(status: int, header: str) -> None:
    """401 asks for a token, 405 tells the methods, 503 says when to come back."""
    response = refusal(status, "why", retry_after_s=3 if status == 503 else None)
    assert header in response.headers
    assert msgspec.json.decode(response.body)["error"]["message"] == "why"


async def test_requests_with_nothing_to_hold_on_to(static: Path) -> None:
    """HTTP/1.0, a pipelined second request and a huge path are answered or dropped within the deadline."""
    async with listening(public(static)) as port:
        host = f"Host: 127.0.0.1:{port.port}\r\n\r\n".encode()
        assert (await port.raw(b"GET /livez HTTP/1.0\r\n" + host)).status == 200
        assert (await port.raw(b"GET /" + b"a" * 8000 + b" HTTP/1.1\r\n" + host)).status == 404
        started = time.monotonic()
        assert (await port.fetch("/livez")).status == 200
        assert time.monotonic() - started < 1
