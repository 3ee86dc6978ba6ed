"""Sockets that were handed over: which is which, what is refused, and that nobody else sees them."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from broker.errors import ConfigError
from broker.sockets.listeners import Listeners, place, take
from tests.kit.activation import listening

PID = 4711
HIGH = 200
"""The first file descriptor that is handed over here: 3 is pytest's own."""


@contextmanager
def handed_over(*sockets: socket.socket) -> Iterator[dict[str, str]]:
    """The sockets, in order, at file descriptors from ``HIGH`` on, which survive an exec; the environment of it."""
    fds = [HIGH + index for index in range(len(sockets))]
    for fd, sock in zip(fds, sockets, strict=True):
        os.dup2(sock.fileno(), fd)
        sock.close()
    try:
        yield {"LISTEN_PID": str(PID), "LISTEN_FDS": str(len(fds)), "PATH": "/bin"}
    finally:
        for fd in fds:
            os.close(fd)


def numbers(found: Listeners) -> tuple[int | None, int | None]:
    """Which of the sockets is what; they are let go of, not closed."""
    sockets = (found.public, found.admin)
    return tuple(None if sock is None else sock.detach() - HIGH for sock in sockets)  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("", (0, 1)), ("web:metrics", (0, 1)), ("web:admin", (0, 1)), ("admin:web", (1, 0)), ("unknown", (0, 1)),
    ],
)  # fmt: skip
def test_which_of_two_is_which(names: str, expected: tuple[int, int]) -> None:
    """The one that is named admin, else the second, is the admin listener."""
    with handed_over(listening(), listening()) as environ:
        assert numbers(take(environ | {"LISTEN_FDNAMES": names}, PID, HIGH)) == expected


@pytest.mark.parametrize(("names", "expected"), [("", (0, None)), ("web", (0, None)), ("admin", (None, 0))])
def test_one_socket(names: str, expected: tuple[int | None, int | None]) -> None:
    """It is the public listener unless its name says admin."""
    with handed_over(listening()) as environ:
        assert numbers(take(environ | {"LISTEN_FDNAMES": names}, PID, HIGH)) == expected


def test_two_sockets_of_one_name_are_refused() -> None:
    """Two addresses of one unit file: nobody can tell which is the admin listener, so none is made public by chance."""
    with handed_over(listening(), listening()) as environ, pytest.raises(ConfigError) as refused:
        take(environ | {"LISTEN_FDNAMES": "a.socket:a.socket"}, PID, HIGH)
    assert refused.value.path == "LISTEN_FDNAMES"


def test_the_variables_go_and_the_sockets_are_close_on_exec() -> None:
    """No child learns of them."""
    with handed_over(listening()) as environ:
        assert os.get_inheritable(HIGH)
        found = take(environ, PID, HIGH)
        assert environ == {"PATH": "/bin"}
        assert not os.get_inheritable(HIGH)
        numbers(found)


@pytest.mark.parametrize("told", [{"LISTEN_PID": "1"}, {"LISTEN_PID": ""}, {"LISTEN_FDS": ""}, {"LISTEN_FDS": "0"}])
def test_what_is_meant_for_another_process_is_left_alone(told: dict[str, str]) -> None:
    """Another pid, or nothing: the broker binds its own; the variables go all the same."""
    environ = {"LISTEN_PID": str(PID), "LISTEN_FDS": "1"} | told
    assert take(environ, PID, HIGH) == Listeners()
    assert environ == {}


@pytest.mark.parametrize("count", ["3", "-1", "many", "1.0", "²"])
def test_a_count_that_is_none_is_refused(count: str) -> None:
    """The variable is named."""
    with pytest.raises(ConfigError) as refused:
        take({"LISTEN_PID": str(PID), "LISTEN_FDS": count}, PID, HIGH)
    assert refused.value.path == "LISTEN_FDS"


@pytest.mark.parametrize("kind", ["closed", "file", "udp", "unix", "not listening", "connected"])
def test_what_is_no_listening_tcp_socket_is_refused(kind: str, tmp_path: Path) -> None:
    """The error names the file descriptor."""
    with socket.socket(socket.AF_UNIX) as unix, socket.socket() as tcp, listening() as peer, socket.socket() as joined:
        unix.bind(str(tmp_path / "socket"))
        unix.listen()
        joined.connect(peer.getsockname())
        with socket.socket(type=socket.SOCK_DGRAM) as udp, (tmp_path / "file").open("w") as file:
            given = {"file": file.fileno(), "udp": udp.fileno(), "unix": unix.fileno(), "not listening": tcp.fileno(),
                     "connected": joined.fileno()}.get(kind)  # fmt: skip
            if given is not None:
                os.dup2(given, HIGH)
            try:
                with pytest.raises(ConfigError) as refused:
                    take({"LISTEN_PID": str(PID), "LISTEN_FDS": "1"}, PID, HIGH)
            finally:
                if given is not None:
                    os.close(HIGH)
    assert f"file descriptor {HIGH}" in refused.value.path


@pytest.mark.parametrize("proto", [0, socket.IPPROTO_TCP])
def test_what_is_accepted_has_no_nagle_delay(proto: int) -> None:
    """TCP_NODELAY holds for accepted sockets, and the loop sees a protocol by which it sets it, too."""
    made = socket.socket(proto=proto)
    made.bind(("127.0.0.1", 0))
    made.listen()
    with handed_over(made) as environ:
        public = take(environ, PID, HIGH).public
        assert public is not None
        with socket.create_connection(public.getsockname()), public.accept()[0] as accepted:
            assert public.proto == accepted.proto == socket.IPPROTO_TCP
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        public.detach()


def test_the_real_address_is_a_setting() -> None:
    """The configuration is judged by what is open: an address for all, an IPv6 one."""
    with listening("0.0.0.0") as everywhere, socket.create_server(("::1", 0), family=socket.AF_INET6) as six:
        ports = [sock.getsockname()[1] for sock in (everywhere, six)]
        flags = Listeners(everywhere, six).flags
        assert flags == {"server.listen": f"0.0.0.0:{ports[0]}", "admin.listen": f"[::1]:{ports[1]}"}
        assert place("127.0.0.1:80", everywhere) == {"sock": everywhere}
    assert Listeners().flags == {}
    assert place("[::1]:80", None) == {"host": "::1", "port": 80}
