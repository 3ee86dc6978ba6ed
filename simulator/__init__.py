"""Stand-ins that ship: a stream-json CLI with a fault menu, and a Messages API on loopback."""
