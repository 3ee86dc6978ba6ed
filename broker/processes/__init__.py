"""One CLI process: how it is started and isolated, what it says, how its whole tree ends."""
