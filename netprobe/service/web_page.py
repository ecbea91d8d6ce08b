"""The live page's program: looks whether the store has news, keeps the newest of each path, and serves the page.

The store is a file that other programs (watch, run, verify) or the collector in this one write to. It is asked for its
size and time only, and opened when these have changed; each look is short and leaves a gap, so that a writer finds its
turn. What has been read once is kept: a hundred pages cost the store no more than one.
"""

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import trio
from hypercorn.config import Config
from hypercorn.trio import serve

from netprobe.errors import HostNotReadyError, NetprobeError, NoAnswerError, UsageError
from netprobe.host.clock import realtime_ns
from netprobe.model.results import Json
from netprobe.service.listening import check_address, listen_at
from netprobe.show.web.app import make_app
from netprobe.show.web.guard import guard_of
from netprobe.store.history import History, open_history

LOOK_S = 0.5
"""How often the file is asked whether it has changed."""

GAP_S = 0.06
"""Between two looks into the store: longer than a writer waits before it tries again."""

MAX_KEPT = 2_000
"""Runs that are remembered as read."""

FORGET_NS = 7 * 86_400 * 1_000_000_000
"""A path that has no result so long before the newest of all is no longer shown. The store keeps it."""

MAX_PATHS = 50_000
"""Of more, those with the oldest results are no longer shown: names that never come again must not fill the memory."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class WebConfig:
    """How the page is served.

    Attributes:
        listen: address and port; port 0 for any.
        token: what whoever looks must know, "" on loopback only.
        store: the file that it shows.
        certificate, key: files, for HTTPS; None for HTTP.
        agents: what the collector in this process says of its agents; None where there is none.
    """

    listen: tuple[str, int]
    token: str
    store: Path
    certificate: Path | None = None
    key: Path | None = None
    agents: Callable[[], Json] | None = None


@dataclass(slots=True)
class Page:
    """What the page knows (show.web.app.Source); `follow` keeps it up to date.

    Attributes:
        paths: newest row of each.
        forgotten: paths that are no longer shown (FORGET_NS, MAX_PATHS), up to MAX_PATHS of them.
    """

    config: WebConfig
    version: int = 0
    paths: dict[str, dict[str, Any]] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)
    newest: Json = field(default_factory=dict)
    problem: str = ""
    forgotten: set[str] = field(default_factory=set)
    _news: trio.Event = field(default_factory=trio.Event)
    _turn: trio.Lock = field(default_factory=trio.Lock)
    _mark: object = None
    _free_at: float = 0.0
    _overview: tuple[int, bytes] = (-1, b"")

    async def follow(self) -> None:
        """Look for news, for good."""
        while True:
            try:
                await self._look()
            except NoAnswerError:
                self._tell("the store holds no result yet")
            except NetprobeError as error:
                self._tell(str(error))
            await trio.sleep(LOOK_S)

    def _tell(self, problem: str) -> None:
        """Something is new: a result, or why there is none."""
        if problem == self.problem and problem:
            return
        self.problem = problem
        self.version += 1
        self._news.set()
        self._news = trio.Event()

    async def _look(self) -> None:
        mark = await trio.to_thread.run_sync(_mark_of, self.config.store)
        if mark is None:
            self._tell(f"there is no store {self.config.store} yet: `netprobe watch`, `run` or `verify` make it")
            return
        if mark == self._mark and not self.problem:
            return
        paths, runs, rest = await self._ask(partial(_read_news, frozenset(self.seen)))
        for path, row in paths.items():
            if path not in self.paths or self.paths[path]["started_ns"] <= row["started_ns"]:
                self.paths[path] = row
        self._forget()
        self.seen = set(runs)
        self.newest = rest
        self._mark = mark
        self._tell("")

    def _forget(self) -> None:
        """Leave out paths that nobody probes any more, and the oldest ones of too many."""
        newest_ns = max((row["started_ns"] for row in self.paths.values()), default=0)
        newest_ns = min(newest_ns, realtime_ns())  # a clock that is ahead makes nobody else's results old
        by_age = sorted(self.paths, key=lambda path: int(self.paths[path]["started_ns"]))
        too_many = len(by_age) - MAX_PATHS
        for place, path in enumerate(by_age):
            if place < too_many or newest_ns - self.paths[path]["started_ns"] > FORGET_NS:
                del self.paths[path]
                if len(self.forgotten) < MAX_PATHS:
                    self.forgotten.add(path)
        self.forgotten -= self.paths.keys()

    async def _ask(self, question: Callable[[History], T]) -> T:
        """Ask the store in a thread, one after the other."""
        async with self._turn:
            await trio.sleep_until(self._free_at)
            try:
                return await trio.to_thread.run_sync(partial(_asked, self.config.store, question))
            finally:
                self._free_at = trio.current_time() + GAP_S

    async def overview(self) -> bytes:
        """As in docs/live-page.md."""
        if self._overview[0] != self.version:
            document = {
                "version": self.version,
                "now_ns": realtime_ns(),
                "problem": self.problem or None,
                "has_collector": self.config.agents is not None,
                "forgotten": len(self.forgotten),
                "paths": list(self.paths.values()),
                **self.newest,
            }
            self._overview = (self.version, json.dumps(document).encode())
        return self._overview[1]

    async def path(self, path: str, run_id: str | None) -> Json | None:
        """As in docs/live-page.md."""
        return await self._ask(partial(_read_path, path=path, run_id=run_id))

    async def segment(self, path: str, leg: str, segment: str) -> Json:
        """As in docs/live-page.md."""
        return {"history": await self._ask(lambda history: history.columns(path, leg, segment))}

    async def verification(self, run_id: str) -> Json | None:
        """As in docs/json.md, without `truth`."""
        return await self._ask(lambda history: history.verification(run_id))

    def agents(self) -> Json:
        """As in docs/live-page.md."""
        return {"collector": self.config.agents() if self.config.agents else None, "now_ns": realtime_ns()}

    async def wait_news(self, version: int, within_s: float) -> int:
        """The newest version, when it is another one or the time is over."""
        with trio.move_on_after(within_s):
            while self.version == version:
                await self._news.wait()
        return self.version


def _mark_of(store: Path) -> object:
    """What changes when somebody writes to a store; None where there is none.

    Raises:
        HostNotReadyError: nobody can tell, since its folder cannot be looked into.
    """
    try:
        now = store.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise HostNotReadyError(
            f"store {store}", f"cannot be looked at: {error.strerror}", advice="check the path, and who may read it"
        ) from error
    return now.st_ino, now.st_size, now.st_mtime_ns


def _asked(store: Path, question: Callable[[History], T]) -> T:
    with open_history(store) as history:
        return question(history)


def _read_news(seen: frozenset[str], history: History) -> tuple[dict[str, dict[str, Any]], list[str], Json]:
    """Newest rows of paths in runs that were not seen yet, all runs, and what is read anew each time."""
    runs = history.runs(MAX_KEPT)
    new = [run["run_id"] for run in runs if run["run_id"] not in seen]
    rows = history.newest(new[:500]) if new else []
    rest: Json = {"runs": runs[:50], "changes": history.changes(), "verifications": history.verifications()}
    return {row["path"]: row for row in rows}, [run["run_id"] for run in runs], rest


def _read_path(history: History, *, path: str, run_id: str | None) -> Json | None:
    found = history.session(path, run_id)
    if found is None:
        return None
    return {**found, "history": history.columns(path), "faults": history.faults(path)}


def _server(config: WebConfig) -> Config:
    """How HTTP is spoken; where, is told later.

    Raises:
        UsageError: the certificate cannot be used.
    """
    server = Config()
    server.errorlog = None
    server.include_server_header = False
    server.graceful_timeout = 0.5
    server.keep_alive_timeout = 30
    if config.certificate and config.key:
        server.certfile, server.keyfile = str(config.certificate), str(config.key)
        try:
            server.create_ssl_context()
        except OSError as error:  # ssl.SSLError is one
            raise UsageError(
                f"--web-cert {config.certificate}, --web-key {config.key}",
                f"cannot be used: {error}",
                advice="give a certificate and its own key, both in PEM",
            ) from error
    return server


async def serve_page(config: WebConfig, ready: Callable[[str], None] = lambda _url: None) -> None:
    """Serve the page until cancelled.

    Args:
        config: how.
        ready: is told the page's address when it can be opened.

    Raises:
        UsageError: the address is none; others can reach it, and there is no token; the certificate cannot be used.
        HostNotReadyError: the address cannot be listened at.
    """
    address, port = config.listen
    await check_address("--web", address, port)
    guard = guard_of(address, config.token)
    page, server = Page(config), _server(config)
    listeners = await listen_at("--web", address, port)
    port = listeners[0].socket.getsockname()[1]
    server.bind = [f"fd://{one.socket.detach()}" for one in listeners]  # from now on its own, to close too
    name = f"[{address}]" if ":" in address else address
    scheme = "https" if config.certificate else "http"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(page.follow)
        await nursery.start(partial(serve, make_app(page, guard), server))
        ready(f"{scheme}://{name}:{port}/")


async def serve_with_page(
    config: WebConfig | None,
    agents: Callable[[], Json],
    collect: Callable[[], Awaitable[None]],
    ready: Callable[[str], None],
) -> None:
    """Serve a collector, and the page beside it where it is asked for; until cancelled.

    Args:
        config: of the page, None for none.
        agents: what the collector says of its agents.
        collect: serves the collector.
        ready: is told the page's address.
    """
    if config is None:
        await collect()
        return
    async with trio.open_nursery() as nursery:
        nursery.start_soon(collect)
        await serve_page(replace(config, agents=agents), ready)
