"""Which process is whose: the ledger, its bounds, and the shell that carries out what it decides."""
