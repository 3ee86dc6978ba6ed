"""The stand-in for the Messages API as an HTTP server: connections kept, cut, refused and left."""

import json
import socket
from collections.abc import Iterator

import pytest

from simulator.messages_api import MessagesApi
from tests.simulator.api_client import DEADLINE_S, KEY, Client, body


@pytest.fixture
def api() -> Iterator[MessagesApi]:
    with MessagesApi() as api:
        yield api


@pytest.fixture
def client(api: MessagesApi) -> Iterator[Client]:
    client = Client(api)
    yield client
    client.http.close()


def test_a_connection_is_kept_alive(client: Client, api: MessagesApi) -> None:
    """Streams, errors and JSON answers follow each other on one connection."""
    client.stream("[[sim tokens=1]]")
    kept = client.http.sock
    assert kept is not None
    client.post(body("[[sim error=529]]"))
    client.post(body("[[sim tokens=1]]"))
    assert client.http.sock is kept


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\ncontent-length: x\r\n\r\n", 400),
        (b"POST /v1/messages HTTP/1.1\r\ncontent-length: 99999999999\r\n\r\n", 413),
        (b"POST /v1/messages HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n", 411),
        (b"GET / HTTP/1.1\r\nx: " + b"y" * 70_000, 400),
    ],
)
def test_what_is_not_understood_is_refused_and_closed(api: MessagesApi, sent: bytes, status: int) -> None:
    """Bytes that are no request are answered with a status, and the connection is closed."""
    with socket.create_connection((api.host, api.port), timeout=DEADLINE_S) as raw:
        raw.sendall(sent)
        answer = raw.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 %d " % status)


def test_a_client_that_leaves_is_noticed(api: MessagesApi) -> None:
    """A stream stops when its client is gone, also in the middle of a pause."""
    client = Client(api)
    payload = json.dumps(body("[[sim tokens=9 itl_ms=60000]]", stream=True))
    client.http.request("POST", "/v1/messages", payload, KEY)
    response = client.http.getresponse()
    response.readline()
    response.close()
    client.http.close()
    assert api.wait_request(lambda request: request["ended"] == "client_gone")["deltas"] <= 1


def test_a_cut_stream_breaks_off_after_its_deltas(client: Client, api: MessagesApi) -> None:
    """``cut_after=2`` sends two text deltas and drops the connection: the answer is not complete."""
    answer = client.stream("hello [[sim tokens=9 cut_after=2]]")
    assert answer.broken
    assert answer.text == "hello0 hello1 "
    seen = api.wait_request(lambda request: request["ended"] == "cut")
    assert seen["deltas"] == 2


def test_a_cut_json_answer_breaks_off(client: Client) -> None:
    """``cut_after`` without streaming drops the connection inside the body."""
    assert client.post(body("[[sim cut_after=1]]")).broken
