"""What a tenant may set, and how a process is told."""
