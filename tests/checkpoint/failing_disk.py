"""A disk that counts the operations on it and strikes at one of them, in every thread."""

import errno
import os
from collections.abc import Callable, Sequence

CHANGES = ("open", "write", "fsync", "rename", "mkdir", "unlink", "rmdir")
READS = ("open", "preadv", "fstat", "scandir")

Patch = Callable[[object, str, object], None]


class Killed(BaseException):
    """The process is gone: nothing of it runs any more."""


def input_output_error() -> BaseException:
    return OSError(errno.EIO, os.strerror(errno.EIO))


class Disk:
    """`patch` is `monkeypatch.setattr`, or `setattr` in a process of its own."""

    def __init__(self, patch: Patch, operations: Sequence[str] = CHANGES) -> None:
        self.count, self.strike_at, self.error = 0, -1, input_output_error
        self.dead = False
        for name in operations:
            patch(os, name, self._counting(getattr(os, name)))

    def arm(self, at: int, error: Callable[[], BaseException] = input_output_error) -> None:
        """Strike at operation number `at` from now on; -1 for none."""
        self.count, self.strike_at, self.error, self.dead = 0, at, error, False

    def _counting(self, real: Callable) -> Callable:
        def operation(*arguments, **options):
            if self.dead:
                raise Killed
            if self.count == self.strike_at:
                self.count += 1
                error = self.error()
                self.dead = isinstance(error, Killed)
                raise error
            self.count += 1
            return real(*arguments, **options)

        return operation
