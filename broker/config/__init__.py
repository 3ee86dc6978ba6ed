"""What an operator may set, where it comes from, and what may change while the broker runs."""
