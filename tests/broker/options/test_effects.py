"""One answer for one effect: whatever frame carries a wish, the same setting of the operator forbids or allows it."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import Raw
from msgspec.structs import replace

from broker.config.policy import Policy
from broker.options.policy import check_content, check_control, check_options, check_updates
from protocol import codec
from protocol.codes import CloseCode, ErrorCode
from protocol.controls import ApplyFlagSettings, PermissionAnswer, decode_control, decode_updates
from protocol.errors import ClientError
from protocol.frames import ControlRequest, Hello, User, UserMessage
from protocol.options import SessionOptions, Settings
from tests.forbidden import (
    ESCALATIONS,
    FILES_FORBIDDEN,
    FORBIDDEN,
    HOOKS_FORBIDDEN,
    LEAKS,
    MODEL_FORBIDDEN,
    SERVER_PAYS,
    Wish,
)

DEFAULT = Policy()
CHEAP = Policy(models=["sonnet", "haiku"])
PAID = Policy(credentials="server")
OPEN = Policy(
    permission_modes=["default", "bypassPermissions"],
    mcp_stdio=True,
    mcp_url_prefixes=["http://169.254.169.254/latest/", "http://127.0.0.1:22/"],
    base_urls=["https://elsewhere.example"],
    add_dir_roots=["/etc"],
    plugin_roots=["/tmp"],
    options=["add_dirs", "plugin_dirs", "setting_sources", "debug", "verbose", "ide", "betas"],
    slash_commands=True,
)
"""Allows everything of ``FORBIDDEN``."""


def judge(frame: dict[str, Any], policy: Policy) -> None:
    """Decode ``frame`` as a connection does and judge it by ``policy``."""
    match codec.decode_client(json.dumps(frame).encode()):
        case Hello(options=options):
            check_options(options, policy)
        case ControlRequest(request_id=request_id, request=request):
            check_control(decode_control(request, request_id), policy, request_id)
        case User(message=message):
            check_content(message.content, policy, None)
        case UserMessage(content=content):
            check_content(content, policy, None)
        case other:
            raise AssertionError(other)


def refused(wish: Wish, policy: Policy) -> None:
    with pytest.raises(ClientError) as caught:
        judge(wish.frame, policy)
    error = caught.value
    assert error.code is ErrorCode.OPTION_NOT_ALLOWED
    assert error.message.endswith(f"(policy.{wish.setting})")
    is_hello = wish.frame["type"] == "broker.hello"
    assert error.close == (CloseCode.NOT_ALLOWED if is_hello else None)
    assert error.ref == wish.frame.get("request_id")


def name(wish: Wish) -> str:
    return f"{wish.effect}-{wish.carrier}".replace(" ", "_")


@pytest.mark.parametrize("wish", FORBIDDEN, ids=name)
def test_a_forbidden_effect_is_refused_in_every_carrier(wish: Wish) -> None:
    """The default policy refuses it and names its setting; hello's refusal ends the connection."""
    refused(wish, DEFAULT)


@pytest.mark.parametrize("wish", FORBIDDEN, ids=name)
def test_the_setting_that_is_named_is_the_one_that_allows(wish: Wish) -> None:
    """An operator who does what the refusal says has allowed it: no second rule stands behind the first."""
    judge(wish.frame, OPEN)
    changed = {wish.setting: getattr(OPEN, wish.setting)}
    if wish.setting == "options":  # which directories is a question of its own
        changed |= {"add_dir_roots": OPEN.add_dir_roots, "plugin_roots": OPEN.plugin_roots}
    judge(wish.frame, replace(DEFAULT, **changed))


@pytest.mark.parametrize("policy", [DEFAULT, OPEN], ids=["default", "open"])
def test_no_server_of_a_tenant_is_filled_with_the_operators_variables(policy: Policy) -> None:
    """The CLI would send its own environment to whoever is named: refused under every policy, in every carrier."""
    for wish in LEAKS:
        refused(wish, policy)


@pytest.mark.parametrize("wish", MODEL_FORBIDDEN, ids=name)
def test_a_model_that_the_operator_did_not_name_is_refused_in_every_carrier(wish: Wish) -> None:
    """As the session's, its fallback, an agent's, or changed live; without a list every model is allowed."""
    refused(wish, CHEAP)
    judge(wish.frame, DEFAULT)


def test_a_model_of_the_list_passes_and_so_does_inheriting_it() -> None:
    """What is listed is allowed everywhere; an agent that inherits has the session's model."""
    agents = {name: {"description": "d", "prompt": "p", "model": name} for name in ("sonnet", "haiku", "inherit")}
    judge({"type": "broker.hello", "options": {"model": "haiku", "agents": agents}}, CHEAP)


@pytest.mark.parametrize("wish", HOOKS_FORBIDDEN, ids=name)
def test_hooks_come_by_no_file(wish: Wish) -> None:
    """What the CLI reads may name programs, and the agent may have written it."""
    refused(wish, Policy(options=["setting_sources"], hooks=False))
    judge(wish.frame, Policy(options=["setting_sources"]))


@pytest.mark.parametrize("wish", FILES_FORBIDDEN, ids=name)
def test_a_directory_beside_the_roots_is_refused_in_every_carrier(wish: Wish, tmp_path: Path) -> None:
    """Where directories may be added at all; the roots that hold it allow it."""
    refused(wish, Policy(options=["add_dirs"], add_dir_roots=[str(tmp_path)]))
    judge(wish.frame, Policy(options=["add_dirs"], add_dir_roots=["/etc"]))


@pytest.mark.parametrize("wish", SERVER_PAYS, ids=name)
def test_where_the_server_pays_nobody_brings_a_credential(wish: Wish) -> None:
    """Neither at hello nor live."""
    refused(wish, PAID)
    judge(wish.frame, DEFAULT)


@pytest.mark.parametrize("update", ESCALATIONS, ids=lambda update: f"{update['type']}-{update['destination']}")
def test_a_permission_answer_changes_nothing_else(update: dict[str, Any]) -> None:
    """Rules, modes and directories that come with an answer are refused; only session rules can be allowed."""
    answer = PermissionAnswer("allow", updatedPermissions=[Raw(msgspec.json.encode(update))])
    with pytest.raises(ClientError) as caught:
        check_updates(decode_updates(answer, "p-1"), DEFAULT, "p-1")
    assert caught.value.code is ErrorCode.OPTION_NOT_ALLOWED


# -- directories -----------------------------------------------------------------------------------------------------


@pytest.fixture
def roots(tmp_path: Path) -> Path:
    """``allowed/inner`` and a file, ``secret`` beside it, links that lead out and back in."""
    for folder in ("allowed/inner", "allowedish", "secret"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "allowed/file").write_text("")
    (tmp_path / "allowed/out").symlink_to(tmp_path / "secret")
    (tmp_path / "allowed/back").symlink_to(tmp_path / "allowed/out/../allowed/inner")
    (tmp_path / "allowed/loop").symlink_to(tmp_path / "allowed/loop")
    (tmp_path / "door").symlink_to(tmp_path / "allowed")
    return tmp_path


OUTSIDE = ["secret", "allowedish", "", "allowed/out", "allowed/../secret", "allowed/inner/../../secret", "allowed/file",
           "allowed/nowhere", "allowed/loop", "allowed/out/."]  # fmt: skip
INSIDE = {
    "allowed": "allowed", "allowed/inner": "allowed/inner", "allowed/../allowed/inner": "allowed/inner",
    "allowed/back": "allowed/inner", "door/inner": "allowed/inner", "allowed//inner/": "allowed/inner",
}  # fmt: skip


def judged(options: SessionOptions, root: Path) -> SessionOptions:
    root_of = [str(root / "door")]
    policy = Policy(options=["add_dirs", "plugin_dirs"], add_dir_roots=root_of, plugin_roots=root_of)
    return check_options(options, policy)


@pytest.mark.parametrize("path", OUTSIDE)
def test_a_directory_outside_of_every_root_is_refused(roots: Path, path: str) -> None:
    """Beside the root, by a link out of it, by ``..``, a prefix of its name, a file, a loop, nothing at all."""
    wish = [str(roots / path) if path else "/"]
    for options in (
        SessionOptions(add_dirs=wish),
        SessionOptions(plugin_dirs=wish),
        SessionOptions(settings=msgspec.convert({"permissions": {"additionalDirectories": wish}}, Settings)),
    ):
        with pytest.raises(ClientError) as caught:
            judged(options, roots)
        assert caught.value.code is ErrorCode.OPTION_NOT_ALLOWED


@pytest.mark.parametrize("path", INSIDE)
def test_a_directory_below_a_root_is_handed_on_as_what_it_is(roots: Path, path: str) -> None:
    """The CLI is given the real path that was judged, never the one that was named."""
    wish, real = [str(roots / path)], [str(roots / INSIDE[path])]
    found = judged(SessionOptions(add_dirs=wish, plugin_dirs=wish), roots)
    assert (found.add_dirs, found.plugin_dirs) == (real, real)
    settings = msgspec.convert({"permissions": {"additionalDirectories": wish}}, Settings)
    changed = judged(SessionOptions(settings=settings), roots).settings
    assert isinstance(changed, Settings)
    assert msgspec.to_builtins(changed) == {"permissions": {"additionalDirectories": real}}
    policy = Policy(options=["add_dirs"], add_dir_roots=[str(roots / "allowed")])
    assert check_control(ApplyFlagSettings(settings), policy, "c1") == ApplyFlagSettings(changed)
