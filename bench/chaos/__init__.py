"""``python -m bench chaos``: tenants who talk while everything around them fails, and a checker that misses nothing.

``plan`` says from a seed what happens; ``traveller`` is one tenant, ``link`` its connection, ``world`` the broker with
what is done to it; ``checker`` and ``join`` hold what clients saw against what the CLIs wrote down.
"""
