"""The configuration that holds now: one holder, asked by whoever outlives a reload.

Owner: ``broker.app``, which alone replaces ``now``.  Callers: what lives as long as the broker does.  A connection and
a session are given the ``Config`` of the moment in which they begin, and keep it.
"""

from broker.config.tree import Config


class Settings:
    """Ask ``now`` each time; what it gives is immutable."""

    def __init__(self, config: Config) -> None:
        self.now = config
