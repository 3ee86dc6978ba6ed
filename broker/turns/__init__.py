"""The pure rules of a conversation: turns and their one end, the numbered log, requests in flight."""
