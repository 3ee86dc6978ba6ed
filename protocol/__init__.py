"""The wire language of the broker: pure, msgspec and the standard library only, no I/O, no clock."""
