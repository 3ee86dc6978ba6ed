"""The one initialize of a conversation: whose it is, and what every other one is answered."""

import pytest
from msgspec import Raw

from broker.turns.handshake import Handshake, Refused
from protocol.controls import HookMatcher, Initialize
from tests.broker.outlets import FakeReader

OWNER, OTHER = FakeReader("owner"), FakeReader("other")
PLAIN = Initialize(systemPrompt="Be brief.")
HOOKS = Initialize({"PreToolUse": [HookMatcher(["h1"])]}, systemPrompt="Be brief.")
MORE_HOOKS = Initialize({"PreToolUse": [HookMatcher(["h1", "h2"])]}, systemPrompt="Be brief.")
NEW, OLD = Raw(b'{"hook_on_failure_supported":true}'), Raw(b'{"commands":[]}')


def owned(request: Initialize = HOOKS, answer: Raw = NEW) -> Handshake:
    """A handshake that the owner has made."""
    handshake = Handshake()
    assert handshake.judge(request, OWNER, is_clients=True) == "first"
    handshake.asked(request, OWNER)
    handshake.answered(answer)
    return handshake


def refusal(handshake: Handshake, request: Initialize, reader: FakeReader, *, is_clients: bool = True) -> str:
    with pytest.raises(Refused) as caught:
        handshake.judge(request, reader, is_clients=is_clients)
    return str(caught.value)


def test_the_brokers_own_is_answered_from_the_cache() -> None:
    """It changes nothing; hooks and servers that would not be in force are refused, and so is one that is too early."""
    handshake = Handshake()
    assert "ask again" in refusal(handshake, PLAIN, OWNER, is_clients=False)
    handshake.answered(OLD)
    assert handshake.judge(PLAIN, OWNER, is_clients=False) == "cached"
    assert "options.initialize" in refusal(handshake, HOOKS, OWNER, is_clients=False)
    assert "sdkMcpServers" in refusal(handshake, Initialize(sdkMcpServers=["x"]), OWNER, is_clients=False)
    assert handshake.judge(Initialize({}, []), OWNER, is_clients=False) == "cached"


def test_who_comes_first_owns_it() -> None:
    """Another client gets the cached answer, but not for hooks of its own."""
    handshake = owned()
    assert handshake.owner is not None
    assert handshake.owner.is_(OWNER)
    assert handshake.judge(PLAIN, OTHER, is_clients=True) == "cached"
    assert handshake.judge(HOOKS, OTHER, is_clients=True) == "cached", "the very same hooks are in force"
    assert "another client" in refusal(handshake, MORE_HOOKS, OTHER)


def test_the_owner_may_come_again() -> None:
    """The same from the cache; other hooks where the CLI replaces them; nothing else can be changed."""
    handshake = owned()
    assert handshake.judge(HOOKS, FakeReader("owner"), is_clients=True) == "cached"
    assert handshake.judge(MORE_HOOKS, OWNER, is_clients=True) == "hooks"
    assert handshake.judge(PLAIN, OWNER, is_clients=True) == "hooks", "none is another set of hooks"
    assert "only its hooks" in refusal(handshake, Initialize(systemPrompt="Be long."), OWNER)
    assert "this version" in refusal(owned(HOOKS, OLD), MORE_HOOKS, OWNER)


def test_while_it_is_asked_nobody_is_answered() -> None:
    """Neither the owner by another request, nor anybody else."""
    handshake = Handshake()
    handshake.asked(HOOKS, OWNER)
    assert "ask again" in refusal(handshake, HOOKS, OWNER)
    assert "ask again" in refusal(handshake, PLAIN, OTHER)


def test_a_refused_one_leaves_what_was_before() -> None:
    """After the first one anybody may try again; other hooks that were refused are as if never asked for."""
    handshake = Handshake()
    handshake.asked(HOOKS, OWNER)
    handshake.refused()
    assert handshake.owner is None
    assert handshake.judge(PLAIN, OTHER, is_clients=True) == "first"
    handshake = owned()
    handshake.asked(MORE_HOOKS, OWNER)
    handshake.refused()
    assert handshake.judge(HOOKS, OWNER, is_clients=True) == "cached"
    assert handshake.owner is not None


@pytest.mark.parametrize("is_clients", [True, False])
def test_a_hook_that_guards_a_tool_must_not_be_asked_to_fail_open(is_clients: bool) -> None:
    """The CLI has such a wish; the broker refuses it, whoever has it."""
    open_guard = Initialize({"PreToolUse": [HookMatcher(["h1"], onFailure="continue")]})
    assert "never fails open" in refusal(Handshake(), open_guard, OWNER, is_clients=is_clients)
    elsewhere = Initialize({"Stop": [HookMatcher(["h1"], onFailure="continue")]})
    assert Handshake().judge(elsewhere, OWNER, is_clients=True) == "first"


def test_one_at_a_time() -> None:
    """While other hooks are asked for, no third set is: a refusal would not know what held before."""
    handshake = owned()
    handshake.asked(MORE_HOOKS, OWNER)
    assert "ask again" in refusal(handshake, PLAIN, OWNER)
    handshake.refused()
    assert handshake.judge(PLAIN, OWNER, is_clients=True) == "hooks"


def test_hooks_of_a_nameless_connection_are_nobodys_once_it_is_gone() -> None:
    """The same initialize from another connection would seem to be in force, and nobody would ever be asked."""
    nameless, handshake = FakeReader(""), Handshake()
    assert handshake.judge(HOOKS, nameless, is_clients=True) == "first"
    handshake.asked(HOOKS, nameless)
    handshake.answered(NEW)
    assert handshake.judge(HOOKS, nameless, is_clients=True) == "cached"
    assert "client.instance" in refusal(handshake, HOOKS, FakeReader(""))
    assert handshake.judge(Initialize(systemPrompt="Be brief."), FakeReader(""), is_clients=True) == "cached"
