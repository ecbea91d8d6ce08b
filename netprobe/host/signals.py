"""Ctrl-C, SIGTERM and a closed terminal as a question: `asked` instead of an exception in the middle of something.

An exception raised by a handler inside the scheduler would skip the undoing of what was made. Main thread only, as
Python's signal handlers are.
"""

import signal
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import trio

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopRequest:
    """Whether somebody asked to stop, and by which signal."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self.why = ""

    def ask(self, why: str) -> None:
        """Ask to stop; the first reason stays."""
        self.why = self.why or why
        self._event.set()

    def asked(self) -> bool:
        """Whether it was asked."""
        return self._event.is_set()


_requests: list[StopRequest] = []  # of the process, as its handlers are: the innermost is the last


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Within, SIGINT, SIGTERM and SIGHUP only ask to stop; afterwards the former handlers are back.

    Where one is within another (a run within a watch), the inner one is asked from the start if the outer one was.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def handle(number: int, _frame: object) -> None:
        request.ask(f"stopped by {signal.Signals(number).name}")

    # What the caller ignores (nohup, a shell's background job) stays ignored.
    mine = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in mine}
    if _requests and _requests[-1].asked():  # looked at when nothing can be missed any more
        request.ask(_requests[-1].why)
    _requests.append(request)
    try:
        yield request
    finally:
        _requests.pop()
        for number, handler in before.items():
            signal.signal(number, handler)


async def until_signalled(program: Callable[[], Awaitable[None]]) -> None:
    """Run a long-running program until it ends, or a signal asks it to; then it is cancelled, and tidies up.

    Args:
        program: runs for good.
    """
    with trio.open_signal_receiver(*SIGNALS) as signals:
        async with trio.open_nursery() as nursery:

            async def run() -> None:
                await program()
                nursery.cancel_scope.cancel()

            nursery.start_soon(run)
            await anext(signals)
            nursery.cancel_scope.cancel()
