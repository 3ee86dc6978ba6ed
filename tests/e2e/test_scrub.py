"""Credentials and the agent's tools: what is told where they cannot be hidden, what is refused, what does not start.

The CLI is the simulated one behind a script, so that the broker takes it for a real one.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from tests.e2e.apart import AS_USER, BROKER_USER, bash, need_root, open_folder, view
from tests.kit.broker import ROOT, Broker, configuration, running_broker, toml
from tests.kit.client import connected

NEEDED = ("setpriv", "sh", "bash", "env", "cat", "ls", "mount", "mkdir", "unshare", "true")
MISSING = "bubblewrap and socat missing (Debian: apt-get install bubblewrap socat)"
WRONG = {"api_key": {"api_key": "k"}, "auth_token": {"auth_token": "t"}}


def script(folder: Path) -> str:
    """A program that is not called ``simulated``."""
    path = folder / "claude"
    path.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -S -m simulator.cli "$@"\n')
    path.chmod(0o755)
    return str(path)


def without_tools(folder: Path) -> str:
    """A PATH on which bubblewrap and socat are not found."""
    programs = folder / "bin"
    programs.mkdir()
    for name in NEEDED:
        found = shutil.which(name)
        assert found is not None, name
        (programs / name).symlink_to(found)
    return str(programs)


def health(broker: Broker) -> Any:
    """What the probe tells."""
    return json.loads(broker.get("/health", admin=True)[1])


def hello(credentials: Mapping[str, str]) -> dict[str, Any]:
    """Hello with these credentials, and a Bash that asks nobody."""
    return {"options": {"credentials": dict(credentials), "allowed_tools": ["Bash"]}}


async def test_missing_tools_are_told_loudly_and_nothing_is_refused_by_default(tmp_path: Path) -> None:
    """A warning names the effect, the packages and the setting; a key is taken, and tools can read it."""
    environment = {"PATH": without_tools(tmp_path)}
    async with running_broker(tmp_path, cli=script(tmp_path), environment=environment) as broker:
        (warning,) = broker.log_events("broker.unscrubbed")
        assert warning["level"] == "warning"
        assert warning["reason"] == MISSING
        assert "API keys and bearer tokens can be read" in warning["effect"]
        assert warning["setting"] == "policy.unscrubbed_secrets"
        assert health(broker)["scrub"] == "off"
        async with connected(broker.url, hello=hello({"api_key": "k-1"})) as client:
            assert await bash(client, "echo key=$ANTHROPIC_API_KEY") == "key=k-1"


@pytest.mark.parametrize("kind", WRONG)
async def test_keys_are_refused_where_tools_could_read_them(kind: str, tmp_path: Path) -> None:
    """``policy.unscrubbed_secrets = "refuse"``: close 4503 that names the setting; an OAuth token is welcome."""
    environment = {"PATH": without_tools(tmp_path)}
    config = {"policy": {"unscrubbed_secrets": "refuse"}}
    async with running_broker(tmp_path, config, cli=script(tmp_path), environment=environment) as broker:
        async with connected(broker.url) as client:
            with pytest.raises(ConnectionClosed) as closed:
                await client.hello(**hello(WRONG[kind]))
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 4503
            (error,) = client.of_type("broker.error")
            assert error["code"] == "option_not_allowed"
            assert kind in error["message"]
            assert "policy.unscrubbed_secrets" in error["message"]
        async with connected(broker.url, hello=hello({"oauth_token": "t"})) as client:
            assert (await client.turn("hi"))["type"] == "broker.turn_completed"


async def test_keys_are_welcome_where_tools_cannot_read_them() -> None:
    """The same policy refuses nothing where the scrub works; the key is not in a tool's environment."""
    assert shutil.which("bwrap"), "bubblewrap is missing (make test installs it)"
    assert shutil.which("socat"), "socat is missing (make test installs it)"
    config = {"policy": {"unscrubbed_secrets": "refuse"}}
    with open_folder() as folder:
        async with running_broker(folder, config, cli=script(folder)) as broker:
            assert broker.log_events("broker.unscrubbed") == []
            assert health(broker)["scrub"] == "on"
            async with connected(broker.url, hello=hello({"api_key": "k-1"})) as client:
                assert await bash(client, "echo key=$ANTHROPIC_API_KEY") == "key="


async def test_the_scrub_can_be_switched_off(tmp_path: Path) -> None:
    """``cli.scrub = "off"``: the variable is not set, and that is told like a missing package."""
    async with running_broker(tmp_path, {"cli": {"scrub": "off"}}, cli=script(tmp_path)) as broker:
        assert broker.log_events("broker.unscrubbed")[0]["reason"] == "cli.scrub is off"
        async with connected(broker.url, hello=hello({"auth_token": "b-1"})) as client:
            assert await bash(client, "echo $ANTHROPIC_AUTH_TOKEN $CLAUDE_CODE_SUBPROCESS_ENV_SCRUB") == "b-1"


def refused(folder: Path, config: Mapping[str, Any], *prefix: str, **environment: str) -> str:
    """What a broker says that does not start: exit code 78, one line, no port."""
    folder.mkdir(exist_ok=True)
    file, ports = folder / "broker.toml", folder / "ports"
    file.write_text(toml(configuration(folder / "state", folder / "ledger", config)))
    argv = [*prefix, sys.executable, "-m", "broker", "serve", "--config", str(file), "--cli", script(folder),
            "--port-file", str(ports)]  # fmt: skip
    done = subprocess.run(
        argv, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 78, done.stderr
    assert not ports.exists()
    return done.stderr.strip()


def test_a_scrub_that_is_asked_for_and_cannot_work_ends_the_start(tmp_path: Path) -> None:
    """``cli.scrub = "on"`` without the tools: exit 78, and what to install."""
    said = refused(tmp_path, {"cli": {"scrub": "on"}}, PATH=without_tools(tmp_path))
    assert said == f"broker: cli.scrub: on, but {MISSING} (allowed: auto, off)"


def test_a_state_directory_whose_path_is_too_long_ends_the_start(tmp_path: Path) -> None:
    """``cli.scrub = "on"``: the scrub's sockets lie below it, and the start says so."""
    said = refused(tmp_path / ("long-" * 12), {"cli": {"scrub": "on"}})
    assert said.startswith("broker: cli.scrub: on, but a socket below state.dir would have a path of")


def test_a_bubblewrap_that_does_not_work_is_as_good_as_none(tmp_path: Path) -> None:
    """It is tried: in a container that forbids namespaces the program is there and fails."""
    programs = Path(without_tools(tmp_path))
    for name in ("bwrap", "socat"):
        (programs / name).write_text("#!/bin/sh\necho bwrap: no permissions to create new namespace >&2\nexit 1\n")
        (programs / name).chmod(0o755)
    said = refused(tmp_path, {"cli": {"scrub": "on"}}, PATH=str(programs))
    assert "bwrap does not work here: bwrap: no permissions" in said


def test_user_namespaces_are_for_a_broker_without_root(tmp_path: Path) -> None:
    """As root ``userns`` is refused, and ``uid`` is named."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    said = refused(tmp_path, {"pool": {"isolation": "userns"}})
    assert said.startswith("broker: pool.isolation: userns is for a broker that does not run as root")


def test_users_of_their_own_need_root() -> None:
    """A broker that is no root cannot give ids out."""
    need_root()
    with open_folder() as folder:
        os.chown(folder, BROKER_USER, BROKER_USER)
        said = refused(folder, {"pool": {"isolation": "uid"}}, *view(), *AS_USER)
    assert said == (
        f"broker: pool.isolation: uid needs a broker that runs as root, this one is user {BROKER_USER} "
        "(allowed: userns, or none)"
    )


def test_an_id_of_somebody_else_is_not_given_out(tmp_path: Path) -> None:
    """Everything that runs under an id is killed at a session's end: it may be nobody else's."""
    need_root()
    said = refused(
        tmp_path, {"session": {"max_sessions": 9}, "pool": {"isolation": "uid", "uid_range": [65530, 65590]}}
    )
    assert said.startswith("broker: pool.uid_range: nobody has id 65534")


def test_a_directory_that_other_users_cannot_reach_ends_the_start(tmp_path: Path) -> None:
    """``uid`` with a state directory below a closed folder: the start says which path could not be entered."""
    need_root()
    with open_folder() as folder:
        folder.chmod(0o700)
        said = refused(folder / "inside", {"pool": {"isolation": "uid"}}, *view())
    assert "pool.isolation: uid does not work here: sh: 2: cd: can't cd to" in said
    assert f"{folder}/inside/state/sessions/probe/home" in said
