"""The benchmarks: one question per sub-command, ``python -m bench --help``.

A load generator is a program like any other: it says how healthy it was itself, keeps every sample, and never averages
a percentile.  It talks to the broker as any client does, over its port; nothing here is imported by the broker.
"""
