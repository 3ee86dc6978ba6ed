"""A stand-in for the Anthropic Messages API on loopback: ``python -m simulator.messages_api --port N``.

``POST /v1/messages`` (a stream of server-sent events, or JSON), ``POST /v1/messages/count_tokens``, ``GET /v1/models``,
``HEAD /``.  What it answers is asked for in the user's text (``simulator.directives``): length, pace, a tool call,
thinking, an HTTP error, a stream that is cut.  Any credential is good unless the word ``bad`` is in it (401); a
model is unknown (404) unless its name begins with ``claude-`` or is an alias, and always when it contains ``unknown``.

For tests: ``GET /_requests[?since=N]`` lists what was seen, credentials included, so it must never meet a real one;
``DELETE /_requests`` forgets it.  ``--port 0`` picks a port, ``--port-file`` receives the number.

Standard library only.  One thread per connection, at most 256; one write per event, Nagle off: its own share in a
measured first token is below a millisecond.  Owner of all threads: ``MessagesApi``, a context manager.
Callers: ``make run``, the bench, the conformance test and every test of the real CLI.
"""

import argparse
import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from simulator import api_reply
from simulator.api_exchange import Exchange
from simulator.api_http import BadRequest, Connection, Gone, Request
from simulator.api_record import Record
from simulator.api_reply import Refusal

MAX_CONNECTIONS: Final = 256
CLOSE_DEADLINE_S: Final = 5.0


class MessagesApi:
    """The server.  ``with MessagesApi() as api:`` listens on ``api.url`` until the block is left.

    ``port`` 0 picks a free one.  ``close`` drops every connection and waits for its threads (5 s).
    """

    def __init__(self, port: int = 0, host: str = "127.0.0.1") -> None:
        self._listener = socket.create_server((host, port), backlog=MAX_CONNECTIONS)
        self.host = host
        self.port: int = self._listener.getsockname()[1]
        self.record = Record()
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._connections: dict[threading.Thread, Connection] = {}
        self._acceptor = threading.Thread(target=self._accept, name="messages-api", daemon=True)

    @property
    def url(self) -> str:
        """What ``ANTHROPIC_BASE_URL`` is set to."""
        return f"http://{self.host}:{self.port}"

    def __enter__(self) -> Self:
        self._acceptor.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening and drop every connection; a reply that is being streamed breaks off."""
        self._closing.set()
        # A blocked accept() is woken by shutdown, not by close.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join(CLOSE_DEADLINE_S)
        self._listener.close()
        with self._lock:
            open_now = list(self._connections.items())
        for _, connection in open_now:
            connection.close()
        deadline = time.monotonic() + CLOSE_DEADLINE_S
        for thread, _ in open_now:
            thread.join(max(0.0, deadline - time.monotonic()))

    def requests(self, since: int = 0) -> list[dict[str, Any]]:
        """What was seen, oldest first, in the shape of ``GET /_requests``."""
        return self.record.list(since)

    def wait_request(self, wanted: Callable[[dict[str, Any]], bool], deadline_s: float = 10.0) -> dict[str, Any]:
        """The first request that satisfies ``wanted``, waiting for it; raises ``TimeoutError``."""
        return self.record.wait(wanted, deadline_s)

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                sock, _ = self._listener.accept()
            except ConnectionError:
                continue  # the peer gave up before it was accepted
            except OSError:
                if self._closing.is_set():
                    return
                raise
            connection = Connection(sock)
            with self._lock:
                if len(self._connections) < MAX_CONNECTIONS and not self._closing.is_set():
                    thread = threading.Thread(target=self._serve, args=(connection,), name="messages-api", daemon=True)
                    self._connections[thread] = connection
                    thread.start()
                    continue
            connection.close()  # above the bound: the client sees its connection closed

    def _serve(self, connection: Connection) -> None:
        try:
            while (request := connection.read()) is not None:
                self._answer(connection, request)
                if not request.keeps_alive:
                    break
        except BadRequest as error:
            self._refuse_quietly(connection, Refusal(error.status, str(error)))
        except Gone:
            pass  # the peer left, or close() cut us off: nobody is there to be told
        finally:
            connection.close()
            with self._lock:
                self._connections.pop(threading.current_thread(), None)

    def _refuse_quietly(self, connection: Connection, refusal: Refusal) -> None:
        with contextlib.suppress(Gone):
            connection.answer(refusal.status, refusal.body(api_reply.unique("req_")), {"connection": "close"})

    def _answer(self, connection: Connection, request: Request) -> None:
        if request.path == "/_requests":
            self._answer_record(connection, request)
            return
        entry = self.record.add(request)
        try:
            Exchange(connection, entry).run()
        except Gone:
            self.record.finish(entry, "cut" if entry.ended == "cut" else "client_gone")
            raise
        self.record.finish(entry, "complete")

    def _answer_record(self, connection: Connection, request: Request) -> None:
        if request.method == "GET":
            name, _, value = request.query.partition("=")
            known = name == "since" and value.isascii() and value.isdigit() and len(value) < 10
            connection.answer(200, self.requests(int(value) if known else 0))
        elif request.method == "DELETE":
            self.record.clear()
            connection.answer(200, {"cleared": True})
        else:
            connection.answer(405, {"error": "GET or DELETE"})


def write_port(file: Path, port: int) -> None:
    """Tell the port to whoever waits for ``file``: it appears whole or not at all."""
    scratch = file.with_name(file.name + ".new")
    scratch.write_text(f"{port}\n")
    os.replace(scratch, file)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT.  Exit codes: 0 after a signal, 1 when the port is taken."""
    parser = argparse.ArgumentParser(prog="python -m simulator.messages_api", description="A simulated Messages API.")
    parser.add_argument("--port", type=int, required=True, help="TCP port; 0 picks a free one")
    parser.add_argument("--port-file", type=Path, help="file that receives the port as a decimal number")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    chosen = parser.parse_args(arguments)
    signals = {signal.SIGTERM, signal.SIGINT}
    # Blocked before any thread starts, so that only sigwait() below ever receives them.
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        api = MessagesApi(chosen.port, chosen.host)
    except OSError as error:
        print(f"messages_api: cannot listen on {chosen.host}:{chosen.port}: {error.strerror}", file=sys.stderr)
        return 1
    with api:
        if chosen.port_file is not None:
            write_port(chosen.port_file, api.port)
        print(f"messages_api: {api.url}", file=sys.stderr, flush=True)
        signal.sigwait(signals)
    return 0


if __name__ == "__main__":
    sys.exit(main())
