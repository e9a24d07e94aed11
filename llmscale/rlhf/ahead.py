"""Work in a thread of its own, whose result is asked for later."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

Result = TypeVar("Result")


class Ahead(Generic[Result]):
    """The thread does not keep a process alive that has come to its end: whoever waits for the result waits
    for it."""

    def __init__(self, work: Callable[[], Result]) -> None:
        self._future: Future[Result] = Future()
        threading.Thread(target=self._run, args=(work,), name="ahead", daemon=True).start()

    def _run(self, work: Callable[[], Result]) -> None:
        try:
            self._future.set_result(work())
        except BaseException as error:  # who asks for the result is told
            self._future.set_exception(error)

    def result(self) -> Result:
        """What the work has brought, once it is done.

        Raises:
            whatever it raised.
        """
        return self._future.result()
