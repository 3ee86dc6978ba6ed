"""End-to-end: a real broker process, real sockets, real children."""
