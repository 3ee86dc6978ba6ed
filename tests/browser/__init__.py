"""The chat page in a real Chromium, against a real broker with the simulated CLI."""
