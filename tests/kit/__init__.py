"""Instruments of the end-to-end tests: a broker in its own process, a client, a fault proxy, a client of raw bytes."""
