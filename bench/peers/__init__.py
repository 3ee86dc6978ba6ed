"""``python -m bench peers``: the broker beside what else a user would put between a socket and a process.

``scenario`` says which loads there are, ``order`` when each of them meets which subject; ``subject`` starts one of
them, ``receiver`` is a process of its own that opens the connections, counts and stamps; ``figures`` and ``judgement``
make numbers and ratios of what it saw.  ``plain_script`` and ``limit.c`` are subjects.
"""
