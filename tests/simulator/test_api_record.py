"""What the stand-in for the Messages API remembers of its requests."""

import time
from collections.abc import Iterator

import pytest

from simulator.api_record import MAX_REQUESTS
from simulator.messages_api import MessagesApi
from tests.simulator.api_client import Client, Json, body


@pytest.fixture
def api() -> Iterator[MessagesApi]:
    with MessagesApi() as api:
        yield api


@pytest.fixture
def client(api: MessagesApi) -> Iterator[Client]:
    client = Client(api)
    yield client
    client.http.close()


def test_requests_are_listed_with_all_that_they_carried(client: Client) -> None:
    """``GET /_requests`` shows credential, model, system prompt, messages, texts, tools and limits of each request."""
    system = [{"type": "text", "text": "You are"}, {"type": "text", "text": "a pirate."}]
    thinking = {"type": "enabled", "budget_tokens": 1024}
    tools = [{"name": "Bash"}, {"name": "Read"}]
    headers = {"authorization": "Bearer token-1", "anthropic-beta": "oauth-2025-04-20,x"}
    sent = body(
        "ahoy [[sim tokens=2]]",
        system=system,
        thinking=thinking,
        tools=tools,
        stream=True,
        output_config={"effort": "low"},
    )
    client.post(sent, headers)
    (seen,) = client.call("GET", "/_requests").listed
    expected = {
        "method": "POST", "path": "/v1/messages", "credential_kind": "oauth", "credential": "token-1",
        "model": "claude-sonnet-5-5", "system": "You are\na pirate.", "messages": sent["messages"],
        "user_texts": ["ahoy [[sim tokens=2]]"], "tools": ["Bash", "Read"], "max_tokens": 1000, "thinking": thinking,
        "status": 200, "deltas": 2, "ended": "complete", "effort": "low", "betas": ["oauth-2025-04-20", "x"],
    }  # fmt: skip
    assert {name: seen[name] for name in expected} == expected
    assert abs(seen["time"] - time.time()) < 60


@pytest.mark.parametrize(
    ("headers", "kind", "value"),
    [
        ({"x-api-key": "k"}, "api_key", "k"),
        ({"authorization": "Bearer t"}, "auth_token", "t"),
        ({"authorization": "Bearer t", "anthropic-beta": "a,oauth-2025-04-20"}, "oauth", "t"),
        ({}, "none", ""),
    ],
)
def test_kinds_of_credential_are_told_apart(client: Client, headers: Json, kind: str, value: str) -> None:
    """An API key, a bearer token and an OAuth token are listed as what they are."""
    client.post(body("x"), headers)
    (seen,) = client.call("GET", "/_requests").listed
    assert (seen["credential_kind"], seen["credential"]) == (kind, value)


def test_the_list_can_be_cleared_and_read_from_a_point(client: Client) -> None:
    """``DELETE /_requests`` forgets; ``?since=N`` lists only what came later, and numbers go on."""
    for text in ("a", "b"):
        client.post(body(text))
    first, second = client.call("GET", "/_requests").listed
    assert client.call("GET", f"/_requests?since={first['n']}").listed == [second]
    client.call("DELETE", "/_requests")
    client.post(body("c"))
    (third,) = client.call("GET", "/_requests").listed
    assert third["user_texts"] == ["c"]
    assert third["n"] > second["n"]


def test_the_list_is_bounded(api: MessagesApi, client: Client) -> None:
    """Only the last 5,000 requests are kept."""
    for _ in range(MAX_REQUESTS + 3):
        client.call("HEAD", "/", headers={})
    numbers = [entry["n"] for entry in api.requests()]
    assert numbers == list(range(4, MAX_REQUESTS + 4))
