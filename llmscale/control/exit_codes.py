"""How a run, an attempt or a command ends. No torch."""

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_NO_PROGRESS = 3
"""Several tries brought no newer checkpoint: another one would bring nothing either."""
EXIT_SAVED = 75
"""Saved and wants to be started again (EX_TEMPFAIL of sysexits.h)."""
