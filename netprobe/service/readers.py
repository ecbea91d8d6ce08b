"""Who is told of a program's readings: a database (service.sink), a page (service.metrics_page), both or nobody."""

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain

import trio

from netprobe.host.clock import realtime_ns
from netprobe.model.metrics import Reading
from netprobe.service.metrics_page import serve_metrics
from netprobe.service.sink import Say, Sink, SinkConfig, open_sink
from netprobe.show.exposition import Exposition

OWN_S = 5.0
"""How often a program that runs for good tells of itself."""


@dataclass(frozen=True, slots=True)
class ReadersConfig:
    """Who is to be told.

    Attributes:
        sink: None for no database.
        listen: where the page is served, None for no page.
        token: that the page asks for, "" for none.
    """

    sink: SinkConfig | None = None
    listen: tuple[str, int] | None = None
    token: str = field(default="", repr=False)


class Readers:
    """Takes readings; made by `open_readers`."""

    def __init__(self, program: str) -> None:
        self.sink: Sink | None = None
        self.page: Exposition | None = None
        self._program = program
        self._tell: Callable[[], Iterable[Reading]] = lambda: ()
        self._has_more = trio.Event()

    def put(self, readings: Iterable[Reading]) -> None:
        """Take readings, and return at once."""
        if self.page is not None:
            readings = list(readings)
            self.page.put(readings, realtime_ns())
        if self.sink is not None:
            self.sink.put(chain(readings, [self.sink.reading(self._program)]))

    def tell_regularly(self, tell: Callable[[], Iterable[Reading]]) -> None:
        """Put what `tell` says, now and every OWN_S, besides everything else."""
        self._tell = tell
        self._has_more.set()

    async def tell_own(self) -> None:
        """Put what `tell_regularly` was given, until cancelled."""
        await self._has_more.wait()
        while True:
            self.put(self._tell())
            await trio.sleep(OWN_S)


@asynccontextmanager
async def open_readers(config: ReadersConfig, program: str, say: Say = lambda _: None) -> AsyncIterator[Readers]:
    """Readers as they are set up. At the end the database gets some seconds for what waits.

    Args:
        config: who is to be told.
        program: `watch`, `serve`, ...
        say: takes lines for people.

    Raises:
        HostNotReadyError: the spool or the page's address cannot be used.
    """
    readers = Readers(program)
    async with AsyncExitStack() as stack:
        nursery = await stack.enter_async_context(trio.open_nursery())
        stack.callback(nursery.cancel_scope.cancel)
        nursery.start_soon(readers.tell_own)
        if config.listen is not None:
            readers.page = Exposition()
            binds = await nursery.start(partial(serve_metrics, readers.page, config.listen, config.token))
            say(f"metrics are at {binds[0]}/metrics")
        if config.sink is not None:
            readers.sink = await stack.enter_async_context(open_sink(config.sink, say))
        yield readers


async def send_readings(config: SinkConfig, program: str, readings: Iterable[Reading], say: Say) -> None:
    """Send readings of a program that ends; what the database does not take waits in the spool for the next one.

    Args:
        config: of the database.
        program: `run`, `trace` or `verify`.
        readings: to be sent.
        say: is told what did not get there.

    Raises:
        HostNotReadyError: the spool cannot be used.
    """
    async with open_readers(ReadersConfig(config), program, say) as readers:
        readers.put(readings)
