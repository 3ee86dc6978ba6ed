"""Result files: what they hold in words, beside one another, as a page, and as the table in README.md.

Callers: ``bench.report`` (the table of a run), the commands ``compare`` and ``report``.
"""
