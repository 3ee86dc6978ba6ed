"""Load as a load tester gives it: a plan that owns the clock, sessions that follow it, a meter of what they saw.

Callers: the commands ``run``, ``sweep``, ``ramp``, ``soak`` and ``connect``.
"""
