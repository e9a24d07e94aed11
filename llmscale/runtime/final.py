"""Errors that a restart would only meet again. No torch."""


class FinalFailure(Exception):
    """Ends the run at once, with exit code 1 and the message as its cause."""

    exit_code = 1
