"""Tokens to identities, and the file that is watched."""

import base64
import hashlib
import os
from pathlib import Path
from typing import Any

import anyio
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from broker import auth
from broker.auth import (
    Authenticator,
    Unauthorized,
    bearer_from_headers,
    bearer_from_subprotocols,
    new_token,
    presented_token,
)
from broker.config.settings import Settings
from broker.config.tree import Config, load
from broker.errors import ConfigError
from protocol.codes import CloseCode

TOKEN, OTHER = "brk_first-token", "brk_second-token"


def digest(token: str) -> str:
    return f"sha256:{hashlib.sha256(token.encode()).hexdigest()}"


def entry(token: str, rest: str = "") -> str:
    return f'{{hash = "{digest(token)}"{rest}}}'


def only(rest: str = "", tenant: str = "a") -> str:
    """A tenants.toml with one tenant and one token."""
    return f"[tenants.{tenant}]\ntokens = [{entry(TOKEN, rest)}]\n"


def written(path: Path, text: str) -> None:
    """Replace the file as an operator should: by renaming over it."""
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    fresh.replace(path)


def configured(tmp_path: Path, text: str, **overrides: Any) -> Config:
    (tmp_path / "broker.toml").write_text('auth.mode = "tokens"\npool.isolation = "none"\n')
    written(tmp_path / "tenants.toml", text)
    return load(tmp_path / "broker.toml", {}, {name.replace("__", "."): value for name, value in overrides.items()})


def refused(tmp_path: Path, text: str, **overrides: Any) -> ConfigError:
    config = configured(tmp_path, text, **overrides)
    with pytest.raises(ConfigError) as caught:
        Authenticator(Settings(config))
    return caught.value


def is_refused(door: Authenticator, token: str | None) -> bool:
    try:
        door.authenticate(token)
    except Unauthorized as error:
        return error.close is CloseCode.UNAUTHORIZED
    return False


# -- who is it -------------------------------------------------------------------------------------------------------


def test_without_authentication_everybody_is_local() -> None:
    """With mode none there is one tenant with the broker's own policy, token or not."""
    door = Authenticator(Settings(Config()))
    for token in (None, TOKEN):
        identity = door.authenticate(token)
        assert (identity.tenant, identity.subject, identity.max_role) == ("local", "*", "controller")
        assert identity.policy == Config().policy
        assert door.still_valid(identity)


def test_a_token_resolves_to_its_tenant(tmp_path: Path) -> None:
    """Each token stands for exactly its tenant, subject and role."""
    alice = entry(OTHER, ', subject = "alice", max_role = "observer"')
    door = Authenticator(Settings(configured(tmp_path, only(tenant="acme") + f"[tenants.b]\ntokens = [{alice}]\n")))
    first, second = door.authenticate(TOKEN), door.authenticate(OTHER)
    assert (first.tenant, first.subject, first.max_role) == ("acme", "*", "controller")
    assert (second.tenant, second.subject, second.max_role) == ("b", "alice", "observer")
    assert door.still_valid(first)


@pytest.mark.parametrize(
    "token",
    [None, "", " ", TOKEN + " ", TOKEN[:-1], TOKEN.upper(), "x" * 5000, "é", "\udc80", digest(TOKEN), "\0" * 32],
)  # fmt: skip
def test_anything_else_is_unauthorized(tmp_path: Path, token: str | None) -> None:
    """No token, a near miss, the hash itself, and odd text all get the same refusal."""
    assert is_refused(
        Authenticator(Settings(configured(tmp_path, f"[tenants.acme]\ntokens = [{entry(TOKEN)}]\n"))), token
    )


def test_a_token_of_any_length_is_not_hashed(tmp_path: Path) -> None:
    """Above 4,096 characters a token is refused unseen, even one that somebody configured."""
    door = Authenticator(
        Settings(configured(tmp_path, f"[tenants.a]\ntokens = [{entry('x' * 4096)}, {entry('x' * 4097)}]\n"))
    )
    assert door.authenticate("x" * 4096).tenant == "a"
    assert is_refused(door, "x" * 4097)


def test_an_identity_shows_no_token(tmp_path: Path) -> None:
    """The text form of an identity holds neither the token nor its digest."""
    identity = Authenticator(Settings(configured(tmp_path, only()))).authenticate(TOKEN)
    assert TOKEN not in repr(identity)
    assert identity.key.hex()[:8] not in repr(identity)
    assert "key" not in repr(identity)


def test_a_tenant_overrides_the_policy_in_part(tmp_path: Path) -> None:
    """``policy`` names what differs; the rest is the broker's own."""
    text = f"[tenants.a]\ntokens = [{entry(TOKEN)}]\npolicy = {{slash_commands = true}}\n"
    config = configured(tmp_path, text, policy__permission_modes='["plan"]')
    policy = Authenticator(Settings(config)).authenticate(TOKEN).policy
    assert (policy.slash_commands, policy.permission_modes) == (True, ["plan"])
    assert config.policy.slash_commands is False


# -- who pays --------------------------------------------------------------------------------------------------------


def test_a_tenant_overrides_the_limits_in_part(tmp_path: Path) -> None:
    """``limits`` names what differs; the rest is the broker's own, and so is another tenant's; null is kept."""
    text = f"[tenants.a]\ntokens = [{entry(TOKEN)}]\nlimits = {{tenant_processes = 3}}\n"
    text += f"[tenants.b]\ntokens = [{entry(OTHER)}]\n"
    config = configured(tmp_path, text, limits__messages_burst=7)
    door = Authenticator(Settings(config))
    limits, others = door.authenticate(TOKEN).limits, door.authenticate(OTHER).limits
    assert (limits.tenant_processes, limits.messages_burst, limits.tenant_sessions) == (3, 7, None)
    assert others == config.limits
    assert others.tenant_processes is None
    assert Authenticator(Settings(Config(limits=limits))).authenticate(None).limits == limits, (
        "without tokens: the broker's"
    )


SERVER = 'policy = {credentials = "server"}\n'


def test_the_server_pays_from_a_file(tmp_path: Path) -> None:
    """A credential file lies beside tenants.toml and holds one credential."""
    (tmp_path / "acme.toml").write_text('api_key = "sk-canary"\nbase_url = "http://127.0.0.1:1"\n')
    text = f'[tenants.a]\ntokens = [{entry(TOKEN)}]\ncredential_file = "acme.toml"\n{SERVER}'
    identity = Authenticator(Settings(configured(tmp_path, text))).authenticate(TOKEN)
    assert identity.credentials is not None
    assert (identity.credentials.kind, identity.credentials.api_key) == ("api_key", "sk-canary")
    assert "sk-canary" not in repr(identity)


def test_the_server_pays_from_the_table(tmp_path: Path) -> None:
    """A credential may stand in tenants.toml itself."""
    text = f'[tenants.a]\ntokens = [{entry(TOKEN)}]\ncredentials = {{oauth_token = "t"}}\n{SERVER}'
    identity = Authenticator(Settings(configured(tmp_path, text))).authenticate(TOKEN)
    assert identity.credentials is not None
    assert identity.credentials.kind == "oauth_token"


@pytest.mark.parametrize(
    ("body", "path", "overrides"),
    [
        ("credentials = {oauth_token = 'sk-canary'}", "tenants.a.policy.credentials", {}),
        ("credentials = {oauth_token = 'sk-canary', api_key = 'sk-canary'}\n" + SERVER, "tenants.a.credentials", {}),
        ("credentials = {oauth = 'sk-canary'}\n" + SERVER, "tenants.a.credentials", {}),
        ("credentials = 'sk-canary'\n" + SERVER, "tenants.a.credentials", {}),
        ("credentials = {api_key = ['sk-canary']}\n" + SERVER, "tenants.a.credentials.api_key", {}),
        ("credentials = {}\ncredential_file = 'x'\n" + SERVER, "tenants.a.credential_file", {}),
        (SERVER, "tenants.a", {}),
        ("", "tenants.a.policy.credentials",
         {"policy.credentials": "server", "cli.env": '{"ANTHROPIC_API_KEY": "sk-canary"}', "tenant": "client"}),
    ],
)  # fmt: skip
def test_a_contradiction_about_credentials_is_refused(
    tmp_path: Path, body: str, path: str, overrides: dict[str, str]
) -> None:
    """Who pays must be unambiguous, and the refusal never shows the credential."""
    if overrides.pop("tenant", None):
        body += 'policy = {credentials = "client"}\n'
    error = refused(tmp_path, f"[tenants.a]\n{body}\n", **overrides)
    assert error.path == path
    assert "canary" not in str(error)


def test_a_missing_credential_file_is_named(tmp_path: Path) -> None:
    """The path of a credential file that cannot be read is in the error."""
    error = refused(tmp_path, f'[tenants.a]\ncredential_file = "gone.toml"\n{SERVER}')
    assert error.path == str(tmp_path / "gone.toml")


# -- the file --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("[tenants.a]\ntokens = [{}]", "tenants.a.tokens[0].hash"),
        ("[tenants.a]\ntokens = [{hash = 'md5:00'}]", "tenants.a.tokens[0].hash"),
        (f"[tenants.a]\ntokens = [{{hash = '{TOKEN}'}}]", "tenants.a.tokens[0].hash"),
        (only(", max_role = 3"), "tenants.a.tokens[0].max_role"),
        (only(", role = 3"), "tenants.a.tokens[0].role"),
        (only(", subject = 'a b'"), "tenants.a.tokens[0].subject"),
        (f"[tenants.a]\ntokens = [{entry(TOKEN)}, {entry(TOKEN)}]", "tenants.a.tokens[1].hash"),
        (f"[tenants.a]\ntokens = [{entry(TOKEN)}]\n[tenants.b]\ntokens = [{entry(TOKEN)}]", "tenants.b.tokens[0].hash"),
        ("[tenants.a]\ntokens = 3", "tenants.a.tokens"),
        ("[tenants.'../x']\ntokens = []", "tenants.'../x'"),
        ("[tenants.a]\npolicy = {slash = true}", "tenants.a.policy.slash"),
        ("[tenants.a]\npolicy = {slash_commands = 1}", "tenants.a.policy.slash_commands"),
        ("[tenants.a]\nlimits = {processes = 1}", "tenants.a.limits.processes"),
        ("[tenants.a]\nlimits = {tenant_processes = 0}", "tenants.a.limits.tenant_processes"),
        ("tenants = 3", "tenants"),
        ("tenant = {}", "tenant"),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path: Path, text: str, path: str) -> None:
    """Every mistake in tenants.toml names the key, and no hash or token is shown."""
    error = refused(tmp_path, text + "\n")
    assert error.path == path
    assert TOKEN not in str(error)


def test_a_missing_file_is_a_configuration_error(tmp_path: Path) -> None:
    """With mode tokens the broker does not start without its tenants."""
    config = configured(tmp_path, "")
    (tmp_path / "tenants.toml").unlink()
    with pytest.raises(ConfigError, match=r"tenants\.toml: cannot be read"):
        Authenticator(Settings(config))


def test_a_removed_token_is_revoked(tmp_path: Path) -> None:
    """After the change the token is refused, its identity is no longer valid, and the listener was called once."""
    text = f"[tenants.a]\ntokens = [{entry(TOKEN)}, {entry(OTHER)}]\n"
    door = Authenticator(Settings(configured(tmp_path, text)))
    calls: list[None] = []
    door.on_revoked(lambda: calls.append(None))
    gone, kept = door.authenticate(TOKEN), door.authenticate(OTHER)
    assert door.poll() is False
    written(tmp_path / "tenants.toml", f"[tenants.a]\ntokens = [{entry(OTHER)}]\n")
    assert door.poll() is True
    assert is_refused(door, TOKEN)
    assert (door.still_valid(gone), door.still_valid(kept)) == (False, True)
    assert calls == [None]
    assert door.poll() is False


@pytest.mark.parametrize(
    "text",
    [
        only("", tenant="b"),
        only(", subject = 'bob'"),
        only(", max_role = 'observer'"),
    ],
)
def test_a_token_that_means_somebody_else_is_revoked(tmp_path: Path, text: str) -> None:
    """A change of tenant, subject or role ends the old identity; the token goes on as the new one."""
    door = Authenticator(Settings(configured(tmp_path, only())))
    old = door.authenticate(TOKEN)
    written(tmp_path / "tenants.toml", text)
    door.poll()
    assert not door.still_valid(old)
    assert door.still_valid(door.authenticate(TOKEN))


def test_an_added_tenant_revokes_nobody(tmp_path: Path) -> None:
    """New tokens work at once and nobody is disturbed; a changed policy waits for the next connection."""
    text = only()
    door = Authenticator(Settings(configured(tmp_path, text)))
    door.on_revoked(lambda: pytest.fail("nothing was revoked"))
    old = door.authenticate(TOKEN)
    more = f"policy = {{slash_commands = true}}\n[tenants.b]\ntokens = [{entry(OTHER)}]\n"
    written(tmp_path / "tenants.toml", text + more)
    door.poll()
    assert door.authenticate(OTHER).tenant == "b"
    assert door.still_valid(old)
    assert door.authenticate(TOKEN).policy.slash_commands


@pytest.mark.parametrize("broken", ["[tenants", "[tenants.a]\ntokens = [{}]\n", None], ids=["torn", "wrong", "gone"])
def test_a_broken_file_keeps_the_last_good_one(tmp_path: Path, broken: str | None) -> None:
    """A broken or missing file changes nothing, is logged once per change, and a mended one is taken."""
    good = only()
    door = Authenticator(Settings(configured(tmp_path, good)))
    path = tmp_path / "tenants.toml"
    with structlog.testing.capture_logs() as logs:
        path.unlink() if broken is None else written(path, broken)
        assert [door.poll(), door.poll(), door.poll()] == [False, False, False]
        assert door.authenticate(TOKEN).tenant == "a"
    assert [line["event"] for line in logs] == ["auth.tenants_rejected"]
    written(path, good.replace("tenants.a", "tenants.z"))
    assert door.poll() is True
    assert door.authenticate(TOKEN).tenant == "z"


def test_a_changed_credential_file_is_taken(tmp_path: Path) -> None:
    """Credential files are watched like tenants.toml."""
    (tmp_path / "c.toml").write_text('api_key = "one"\n')
    text = f'[tenants.a]\ntokens = [{entry(TOKEN)}]\ncredential_file = "c.toml"\n{SERVER}'
    door = Authenticator(Settings(configured(tmp_path, text)))
    old = door.authenticate(TOKEN)
    written(tmp_path / "c.toml", 'api_key = "two"\n')
    assert door.poll() is True
    credentials = door.authenticate(TOKEN).credentials
    assert credentials is not None
    assert credentials.api_key == "two"
    assert door.still_valid(old)


def test_a_credential_file_that_appears_late_is_taken(tmp_path: Path) -> None:
    """A rejected tenants.toml is taken as soon as the file that it misses is there."""
    door = Authenticator(Settings(configured(tmp_path, only())))
    text = f'[tenants.b]\ntokens = [{entry(TOKEN)}]\ncredential_file = "late.toml"\n{SERVER}'
    written(tmp_path / "tenants.toml", text)
    assert door.poll() is False
    (tmp_path / "late.toml").write_text('api_key = "x"\n')
    assert door.poll() is True
    assert door.authenticate(TOKEN).tenant == "b"


def test_a_file_of_the_same_size_and_time_is_noticed(tmp_path: Path) -> None:
    """A replaced file counts as changed even when its size and time are those of the old one."""
    door = Authenticator(Settings(configured(tmp_path, only())))
    path = tmp_path / "tenants.toml"
    old = path.stat()
    written(path, f"[tenants.b]\ntokens = [{entry(TOKEN)}]\n")
    os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))
    assert door.poll() is True


async def test_a_revocation_is_told_within_its_deadline(tmp_path: Path) -> None:
    """The running watch tells its listeners of a removed token within two seconds, at its own pace."""
    door = Authenticator(Settings(configured(tmp_path, only())))
    revoked = anyio.Event()
    door.on_revoked(revoked.set)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(door.run)
        written(tmp_path / "tenants.toml", "[tenants.a]\n")
        with anyio.fail_after(2 * auth.WATCH_INTERVAL_S):
            await revoked.wait()
        tasks.cancel_scope.cancel()


# -- tokens on the way in --------------------------------------------------------------------------------------------


def subprotocol(token: str) -> str:
    return "broker.bearer." + base64.urlsafe_b64encode(token.encode()).decode().rstrip("=")


@pytest.mark.parametrize("value", ["Bearer abc", "bearer abc", "BEARER   abc", " Bearer abc\t"])
def test_a_bearer_header_gives_its_token(value: str) -> None:
    """The scheme is case-insensitive; spaces around do not matter."""
    assert bearer_from_headers([value]) == "abc"


@pytest.mark.parametrize(
    "values", [["Bearer"], ["Bearer "], [""], ["Basic abc"], ["abc"], ["Bearer a b"], ["Bearer é"], ["Bearer a,b"],
               ["Bearer a\n"], ["Bearer a", "Bearer a"], ["Bearer a", ""], ["Bearer\u00a0a"]],
)  # fmt: skip
def test_a_malformed_header_is_unauthorized(values: list[str]) -> None:
    """What is there but is no bearer token is refused, never skipped."""
    with pytest.raises(Unauthorized):
        bearer_from_headers(values)


@pytest.mark.parametrize(
    "values",
    [[f"broker.v1, {subprotocol('abc')}"], [subprotocol("abc"), "broker.v1"], [f"a,b , {subprotocol('abc')},"]],
)  # fmt: skip
def test_a_subprotocol_gives_its_token(values: list[str]) -> None:
    """The entry may stand anywhere among the offered subprotocols."""
    assert bearer_from_subprotocols(values) == "abc"


@pytest.mark.parametrize(
    "entry_", ["broker.bearer.", "broker.bearer", "Broker.Bearer.YWJj", "broker.bearer.YWJj=", "broker.bearer.Y",
               "broker.bearer.+/+/", "broker.bearer.w6k", "broker.bearer.YSBi", "broker.bearer.AAAA",
               "broker.bearer.YWJj, broker.bearer.YWJj"],
)  # fmt: skip
def test_a_malformed_subprotocol_is_unauthorized(entry_: str) -> None:
    """Padding, other alphabets, other letters, spaces inside and two tokens are refused."""
    with pytest.raises(Unauthorized):
        bearer_from_subprotocols([f"broker.v1, {entry_}"])


def test_the_header_wins_over_the_subprotocol() -> None:
    """First that is present wins; nothing at all is None; a malformed one is never skipped."""
    assert presented_token([], []) is None
    assert presented_token([], ["broker.v1"]) is None
    assert presented_token(["Bearer a"], [subprotocol("b")]) == "a"
    assert presented_token([], [subprotocol("b")]) == "b"
    with pytest.raises(Unauthorized):
        presented_token(["Bearer a"], ["broker.bearer."])


@given(st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=200))
def test_any_token_survives_the_subprotocol(token: str) -> None:
    """Every visible ASCII token comes back as it was."""
    assert bearer_from_subprotocols([subprotocol(token)]) == token


@given(st.lists(st.text(max_size=60), max_size=3))
def test_no_header_raises_anything_else(values: list[str]) -> None:
    """Any text in either header gives a token, nothing, or Unauthorized."""
    for read in (bearer_from_headers, bearer_from_subprotocols):
        try:
            assert read(values) != ""
        except Unauthorized:
            continue


@pytest.mark.parametrize("name", ["acme", "acme.eu"])
def test_a_new_token_works_as_printed(tmp_path: Path, name: str) -> None:
    """The printed lines, put into tenants.toml, let the printed token in; two tokens differ."""
    token, lines = new_token(name)
    assert token not in lines
    assert new_token(name)[0] != token
    identity = Authenticator(Settings(configured(tmp_path, lines + "\n"))).authenticate(token)
    assert (identity.tenant, identity.subject, identity.max_role) == (name, "*", "controller")
    assert bearer_from_headers([f"Bearer {token}"]) == token


def test_a_tenant_without_a_proper_name_is_refused() -> None:
    """No token for a name that tenants.toml would refuse."""
    with pytest.raises(ConfigError):
        new_token("a b")
