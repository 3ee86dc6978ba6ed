"""Everything that listens: WebSockets, HTTP, who may come in."""
