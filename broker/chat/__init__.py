"""``broker chat``: a client for a terminal."""
