"""The session broker: many tenants' WebSockets on a pool of warm, long-running CLI processes."""

__version__ = "0.1.0"
