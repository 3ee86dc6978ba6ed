"""Conversations: they outlive sockets and processes, and the broker itself."""
