"""Waiting for something to become true, bounded in time; the one place where tests poll."""

import threading
import time


def until(condition, timeout_s=10.0):
    """Return the first true value of `condition()`.

    Raises:
        TimeoutError: it did not become true in time.
    """
    deadline = time.monotonic() + timeout_s
    pause = threading.Event()
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{condition} did not become true within {timeout_s:g} s")
        pause.wait(0.005)
    return value
