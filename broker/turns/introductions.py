"""How long MCP servers that live in a client may take to introduce themselves: one deadline each, retries included.

Pure: ``now`` is seconds of a monotonic clock.  Owner: one ``broker.sessions.questions.Questions``.  An introduction is
``initialize`` and what follows it up to the first ``tools/list``.  A CLI whose ``initialize`` fails sends another at
once, and the tenant's message waits for that one too.
"""

RETRY_S = 1.0
"""What comes so soon after the broker gave a server up is a retry of the CLI's: nobody is asked again."""


class Introductions:
    """Of one process's servers, by name."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self._until: dict[str, float] = {}
        self._given_up: dict[str, float] = {}

    def reset(self) -> None:
        """Another process asks anew."""
        self._until.clear()
        self._given_up.clear()

    def deadline(self, server: str, method: str, now: float) -> float | None:
        """Until when the client may answer this message; None when it is not to be asked.

        The caller has looked up ``server``: only names that somebody has declared are kept.
        """
        until = self._until.get(server, now + self.limit_s)
        if until <= now < until + RETRY_S or now - self._given_up.get(server, float("-inf")) < RETRY_S:
            return None
        until = until if now < until else now + self.limit_s
        if method == "initialize":
            self._until[server] = until
        elif method == "tools/list":
            self._until.pop(server, None)
        return until

    def give_up(self, server: str, now: float) -> bool:
        """The client has not answered in time, or is not to be asked; True when that is news."""
        is_news = now - self._given_up.get(server, float("-inf")) >= RETRY_S
        self._given_up[server] = now
        self._until.pop(server, None)
        return is_news
