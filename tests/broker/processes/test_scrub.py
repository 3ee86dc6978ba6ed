"""Whether credentials can be hidden from tools, and what a policy makes of it."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from broker.config.policy import Policy, in_force
from broker.options.policy import check_control, check_options
from broker.processes.scrub import obstacle
from protocol.codes import CloseCode, ErrorCode
from protocol.controls import SetCredentials
from protocol.errors import ClientError
from protocol.options import Credentials, SessionOptions

SECRETS = (Credentials(api_key="k"), Credentials(auth_token="t"))
REFUSING = Policy(unscrubbed_secrets="refuse")


def programs(folder: Path, *names: str) -> str:
    """A PATH with these programs."""
    for name in names:
        (folder / name).touch(mode=0o755)
    return str(folder)


@pytest.mark.parametrize(
    ("present", "packages"), [((), "bubblewrap socat"), (("bwrap",), "socat"), (("socat",), "bubblewrap")]
)
def test_what_is_missing_is_named_by_its_package(tmp_path: Path, present: tuple[str, ...], packages: str) -> None:
    """Nothing is tried then, and the command that installs it is told."""
    said = obstacle(programs(tmp_path, *present), Path("/s"), lambda words: pytest.fail(f"{words} was tried"))
    assert said.endswith(f"(Debian: apt-get install {packages})")


@pytest.mark.parametrize(
    ("failing", "said"), [("bwrap", "bwrap does not work here: no"), ("socat", "socat does"), ("", "")]
)
def test_both_programs_are_tried(tmp_path: Path, failing: str, said: str) -> None:
    """They work when a start of each does; the first that fails is named with what it said."""
    tried = []

    def attempt(words: Sequence[str]) -> str:
        tried.append(words[0])
        return "no" if words[0] == failing else ""

    assert obstacle(programs(tmp_path, "bwrap", "socat"), Path("/s"), attempt).startswith(said)
    assert tried == (["bwrap"] if failing == "bwrap" else ["bwrap", "socat"])


@pytest.mark.parametrize(
    ("length", "said"), [(73, ""), (74, "a socket below state.dir would have a path of 108 bytes")]
)
def test_a_socket_must_have_room_below_the_state_directory(tmp_path: Path, length: int, said: str) -> None:
    """Measured on both versions: in a longer path every command of the agent fails."""
    tmp = Path("/" + "t" * (length - 1))
    found = obstacle(programs(tmp_path, "bwrap", "socat"), tmp, lambda _: "")
    assert found.startswith(said)
    assert bool(found) == bool(said)


@pytest.mark.parametrize("secret", SECRETS)
def test_a_policy_may_refuse_what_tools_could_read(secret: Credentials) -> None:
    """In hello and in a control request alike, by the same setting."""
    with pytest.raises(ClientError, match=r"policy\.unscrubbed_secrets") as hello:
        check_options(SessionOptions(credentials=secret), REFUSING)
    assert (hello.value.code, hello.value.close) == (ErrorCode.OPTION_NOT_ALLOWED, CloseCode.NOT_ALLOWED)
    with pytest.raises(ClientError, match=r"policy\.unscrubbed_secrets"):
        check_control(SetCredentials(secret), REFUSING, "c-1")
    for policy in (Policy(), in_force(REFUSING, is_scrubbed=True)):
        check_options(SessionOptions(credentials=secret), policy)
    assert in_force(REFUSING, is_scrubbed=False) is REFUSING


def test_an_oauth_token_is_never_refused_for_that() -> None:
    """No tool is handed one."""
    check_options(SessionOptions(credentials=Credentials(oauth_token="t")), REFUSING)
