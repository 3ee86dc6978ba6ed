"""The stand-in for the Messages API as a server and a program: routes, credentials, pace, signals."""

import http.client
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from simulator.messages_api import MessagesApi
from tests.simulator.api_client import DEADLINE_S, KEY, Client, Json, body
from tests.waiting import eventually_sync


@pytest.fixture
def api() -> Iterator[MessagesApi]:
    with MessagesApi() as api:
        yield api


@pytest.fixture
def client(api: MessagesApi) -> Iterator[Client]:
    client = Client(api)
    yield client
    client.http.close()


def test_count_tokens_grows_with_the_conversation(client: Client) -> None:
    """A longer conversation counts more tokens, and its directives are not obeyed."""
    short = client.call("POST", "/v1/messages/count_tokens", body("x [[sim error=500]]")).json["input_tokens"]
    long = client.call("POST", "/v1/messages/count_tokens", body("x" * 4000)).json["input_tokens"]
    assert 0 < short < long


def test_the_list_of_models_and_the_boot_probe(client: Client) -> None:
    """``GET /v1/models`` lists models that can be used; ``HEAD /`` answers without a credential or a body."""
    names = [model["id"] for model in client.call("GET", "/v1/models?limit=1000").json["data"]]
    assert names
    assert client.post(body("[[sim tokens=1]]", model=names[0])).status == 200
    assert client.call("HEAD", "/", headers={}).status == 200


def test_unknown_paths_and_methods_are_404(client: Client) -> None:
    """A path that does not exist is the API's own 404."""
    assert client.call("GET", "/v2/anything").json["error"]["type"] == "not_found_error"
    assert client.call("DELETE", "/v1/messages").status == 404
    assert client.call("POST", "/_requests").status == 405


@pytest.mark.parametrize("headers", [{}, {"x-api-key": "a-bad-key"}, {"authorization": "Bearer bad-token"}])
def test_no_credential_and_a_bad_one_are_401(client: Client, headers: Json) -> None:
    """Nothing is answered without a credential, nor with one that contains ``bad``."""
    answer = client.post(body("x"), headers)
    assert (answer.status, answer.json["error"]["type"]) == (401, "authentication_error")
    assert client.call("GET", "/v1/models", headers=headers).status == 401


def test_the_first_byte_waits_for_ttft(client: Client) -> None:
    """``ttft_ms`` delays the very first byte of the answer."""
    started = time.monotonic()
    client.http.request("POST", "/v1/messages", json.dumps(body("[[sim ttft_ms=150 tokens=1]]", stream=True)), KEY)
    response = client.http.getresponse()
    assert 0.15 <= time.monotonic() - started < DEADLINE_S
    assert response.read()


def test_deltas_are_paced_and_sent_as_they_come(client: Client) -> None:
    """``itl_ms`` separates the deltas: the first can be read long before the last is sent."""
    started = time.monotonic()
    text = "[[sim itl_ms=40 tokens=6]]"
    client.http.request("POST", "/v1/messages", json.dumps(body(text, stream=True)), KEY)
    response = client.http.getresponse()
    while b"text_delta" not in response.readline():
        pass
    first = time.monotonic() - started
    response.read()
    assert time.monotonic() - started >= first + 0.15


def test_streams_run_beside_each_other(api: MessagesApi) -> None:
    """A slow stream on one connection does not hold up another connection."""
    slow, quick = Client(api), Client(api)
    slow.http.request("POST", "/v1/messages", json.dumps(body("[[sim ttft_ms=60000]]")), KEY)
    api.wait_request(lambda request: "60000" in request["user_texts"][0])
    assert quick.stream("[[sim tokens=1]]").status == 200
    for client in (slow, quick):
        client.http.close()


def test_its_own_share_is_below_a_millisecond(client: Client) -> None:
    """From the request to the first delta it takes less than a millisecond of its own (median of 50)."""
    payload = json.dumps(body("hello [[sim tokens=3]]", stream=True))
    spent = []
    for _ in range(50):
        started = time.perf_counter()
        client.http.request("POST", "/v1/messages", payload, KEY)
        response = client.http.getresponse()
        while b"text_delta" not in response.readline():
            pass
        spent.append(time.perf_counter() - started)
        response.read()
    # Twice the promise: the client in this same process has its share, too.
    assert sorted(spent)[25] < 0.002


def test_the_program_tells_its_port_and_leaves_in_order(tmp_path: Path) -> None:
    """``--port 0 --port-file`` writes the chosen port; SIGTERM ends the program with 0, also in mid-stream."""
    file = tmp_path / "port"
    command = [sys.executable, "-m", "simulator.messages_api", "--port", "0", "--port-file", str(file)]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as program:
        eventually_sync(file.exists, DEADLINE_S)
        connection = http.client.HTTPConnection("127.0.0.1", int(file.read_text()), timeout=DEADLINE_S)
        connection.request("POST", "/v1/messages", json.dumps(body("[[sim itl_ms=60000]]", stream=True)), KEY)
        assert connection.getresponse().status == 200
        program.send_signal(signal.SIGTERM)
        assert program.wait(DEADLINE_S) == 0
        connection.close()


def test_a_taken_port_is_told(api: MessagesApi) -> None:
    """A port that is in use ends the program with 1 and a sentence."""
    command = [sys.executable, "-m", "simulator.messages_api", "--port", str(api.port)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == 1
    assert str(api.port) in done.stderr
