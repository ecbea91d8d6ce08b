"""OVSDB databases, followed as they change: the one user of Open vSwitch's own client library (`ovs`).

`follow` keeps a replica of some tables and hands over all their rows whenever one changed. It blocks, so it runs in a
thread of its own, under service.following. It only reads. Which tables, and what their rows mean, is for
netprobe.host.ovsdb and netprobe.host.ovn_databases to say. The library logs nothing unless its Vlog is set up, which
nobody here does.
"""

import errno
import os
import select
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import ovs.jsonrpc  # type: ignore[import-untyped]
import ovs.stream  # type: ignore[import-untyped]
from ovs.db.idl import ROW_DELETE, Idl, SchemaHelper  # type: ignore[import-untyped]
from ovs.db.idl import Row as IdlRow

from netprobe.errors import HostNotReadyError, UsageError
from netprobe.host.netns import in_netns

FIRST_BACKOFF_S = 0.25
MAX_BACKOFF_S = 8.0
"""As the library's own (ovs.reconnect), but a first retry soon: a database that restarts is back within a second."""

CONNECT_TIMEOUT_S = 5.0
PROBE_INTERVAL_MS = 2500
"""An idle connection is probed, and dropped after as long again without an answer: half-open, or the server hangs."""

METHODS = ("unix:", "tcp:", "ssl:")

Value = str | int | float | bool | list["Value"] | dict["Value", "Value"]
Row = Mapping[str, Value]
"""Columns by name; a set is a list, a reference the other row's UUID as text; `_uuid` is there too."""

Tables = Mapping[str, Mapping[str, Row]]
"""Rows by table and by UUID."""


@dataclass(frozen=True, slots=True)
class Database:
    """Where a database is, and what of it is wanted.

    Attributes:
        label: what messages call it: "OVN southbound".
        remote: `unix:PATH`, `tcp:IP:PORT`, `ssl:IP:PORT`, or several of them with commas between.
        name: the database's own name: "Open_vSwitch", "OVN_Southbound", "OVN_Northbound".
        tables: wanted columns by table. What the server's schema lacks is left out: it is older or newer.
        netns: network namespace to connect from, "" for the caller's own.
    """

    label: str
    remote: str
    name: str
    tables: Mapping[str, tuple[str, ...]]
    netns: str = ""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """What `ssl:` remotes need, as PEM files: OVN's databases want to know who reads them."""

    private_key: str
    certificate: str
    ca_certificate: str


def use_tls(files: TlsFiles) -> None:
    """Set the files for all `ssl:` remotes of this process; the library keeps one set."""
    ovs.stream.Stream.ssl_set_private_key_file(files.private_key)
    ovs.stream.Stream.ssl_set_certificate_file(files.certificate)
    ovs.stream.Stream.ssl_set_ca_cert_file(files.ca_certificate)


class Stopper:
    """Ends a `follow` in another thread, wherever it waits. Close it when that has ended."""

    def __init__(self) -> None:
        self._read, self._write = socket.socketpair()
        self._event = threading.Event()

    def stop(self) -> None:
        """From any thread; twice is fine."""
        if not self._event.is_set():
            self._event.set()
            self._write.send(b"\0")

    @property
    def is_stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._event.is_set()

    def fileno(self) -> int:
        """Readable once stopped."""
        return self._read.fileno()

    def wait(self, seconds: float) -> None:
        """Sleep, but not beyond `stop`."""
        self._event.wait(seconds)

    def close(self) -> None:
        """Let go of the sockets."""
        self._read.close()
        self._write.close()


class Listener(Protocol):
    """Who hears of a database. Called from the thread that follows it."""

    def rows(self, tables: Tables) -> None:
        """The tables as they are now; at the beginning, and after each change."""

    def trouble(self, why: str) -> None:
        """It cannot be read at present; what was said last stands. It is tried again."""


class _Waiter:
    """What the library calls a poller. Its own is select(2), which cannot have descriptors above 1023."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._timeout_ms: int | None = None

    def fd_wait(self, fd: object, events: int) -> None:
        """The library's bits are poll(2)'s."""
        self._poll.register(fd, events)  # type: ignore[arg-type]  # a socket, or a number

    def timer_wait(self, msec: int) -> None:
        """Wait no longer than this."""
        msec = max(0, msec)
        self._timeout_ms = msec if self._timeout_ms is None else min(self._timeout_ms, msec)

    def timer_wait_until(self, msec: int) -> None:
        """The same for a point in time, CLOCK_MONOTONIC."""
        self.timer_wait(msec - time.monotonic_ns() // 1_000_000)

    def immediate_wake(self) -> None:
        """Wait not at all."""
        self._timeout_ms = 0

    def block(self) -> None:
        """Wait for the first of what was asked for."""
        self._poll.poll(self._timeout_ms)


class _Replica(Idl):  # type: ignore[misc]  # the library has no types
    """An IDL that keeps its rows as plain values, converting only those that changed."""

    def __init__(self, database: Database, schema: SchemaHelper) -> None:
        super().__init__(database.remote, schema, leader_only=False)
        self._session.reconnect.set_probe_interval(PROBE_INTERVAL_MS)  # the library would not probe a Unix socket
        self.plain: dict[str, dict[str, Row]] = {table: {} for table in database.tables}

    def notify(self, event: str, row: IdlRow, updates: object = None) -> None:  # noqa: ARG002  the library's signature
        """Called for each row of an update, after it."""
        rows = self.plain[row._table.name]  # noqa: SLF001  a Row has no public way to its table
        if event == ROW_DELETE:
            rows.pop(str(row.uuid), None)
        else:
            rows[str(row.uuid)] = _plain(row)

    @property
    def has_rows(self) -> bool:
        """Whether the connection stands and the whole content has come."""
        return bool(self._session.is_connected()) and self.state == self.IDL_S_MONITORING


def _plain(row: IdlRow) -> Row:
    """The row as it came: the library's own accessors would look up rows of tables that nobody follows."""
    data = row._data  # noqa: SLF001  see above
    values = {column: _value(data[column].to_python(lambda atom, _base: atom)) for column in row._table.columns}  # noqa: SLF001
    return {**values, "_uuid": str(row.uuid)}


def _value(value: object) -> Value:
    if isinstance(value, uuid.UUID):
        return str(value)
    if isinstance(value, list):
        return [_value(v) for v in value]
    if isinstance(value, dict):
        return {str(k): _value(v) for k, v in value.items()}
    assert isinstance(value, str | int | float | bool), value
    return value


def check_remote(remote: str) -> None:
    """Refuse what the library would not understand.

    Raises:
        UsageError: a remote of another kind, or one that needs a certificate, and none was given.
    """
    for one in remote.split(","):
        if not one.startswith(METHODS):
            raise UsageError(f"OVSDB remote {remote!r}", f"has {one!r}", allowed=", ".join(m + "…" for m in METHODS))
        if one.startswith("ssl:") and ovs.stream.Stream._SSL_private_key_file is None:  # noqa: SLF001  no other way
            raise UsageError(
                f"OVSDB remote {remote!r}",
                "needs a certificate of ours, and none was given",
                advice="name key, certificate and CA for it",
            )


def _schema(database: Database, stopper: Stopper) -> SchemaHelper:
    """Ask the first server that answers for its schema, and keep of it what is wanted.

    Raises:
        OSError: none answers.
        HostNotReadyError: it has no such database, or a whole table is missing.
    """
    failure = OSError(errno.ENOENT, os.strerror(errno.ENOENT))
    for remote in database.remote.split(","):
        try:
            return _wanted(database, _ask(remote, database.name, stopper))
        except OSError as error:
            failure = error
    raise failure


def _ask(remote: str, name: str, stopper: Stopper) -> dict[str, object]:
    """One get_schema (RFC 7047 §4.1.2). The library's own blocking call has no timeout."""
    deadline = time.monotonic() + CONNECT_TIMEOUT_S
    code, stream = ovs.stream.Stream.open(remote)
    if code:
        if stream is not None:
            stream.close()
        raise OSError(abs(code), os.strerror(abs(code)))
    try:
        while (code := stream.connect()) == errno.EAGAIN:
            _wait_for(stream.connect_wait, deadline, stopper)
        if code:
            raise OSError(abs(code), os.strerror(abs(code)))
        rpc = ovs.jsonrpc.Connection(stream)
        rpc.send(ovs.jsonrpc.Message.create_request("get_schema", [name]))
        while True:
            rpc.run()
            code, reply = rpc.recv()
            if reply is not None and reply.type in {ovs.jsonrpc.Message.T_REPLY, ovs.jsonrpc.Message.T_ERROR}:
                break
            if code not in {0, errno.EAGAIN}:
                raise ConnectionResetError(errno.ECONNRESET, "the connection was lost")
            _wait_for(lambda waiter: (rpc.wait(waiter), rpc.recv_wait(waiter)), deadline, stopper)
    finally:
        stream.close()
    if not isinstance(reply.result, dict):
        raise OSError(errno.EPROTO, f"asked for the schema of {name}, it said {reply.error!r}")
    return reply.result


def _wait_for(arrange: Callable[[_Waiter], object], deadline: float, stopper: Stopper) -> None:
    """Wait for what `arrange` asks for.

    Raises:
        TimeoutError: not before the deadline, or `stopper` said stop.
    """
    waiter = _Waiter()
    arrange(waiter)
    waiter.fd_wait(stopper, select.POLLIN)
    waiter.timer_wait(int(1000 * (deadline - time.monotonic())) + 1)
    waiter.block()
    if stopper.is_stopped or time.monotonic() > deadline:
        raise TimeoutError(errno.ETIMEDOUT, f"gave no answer within {CONNECT_TIMEOUT_S:g} s")


def _wanted(database: Database, schema: dict[str, object]) -> SchemaHelper:
    tables = schema.get("tables")
    if not isinstance(tables, dict) or not set(database.tables) <= set(tables):
        missing = sorted(set(database.tables) - set(tables)) if isinstance(tables, dict) else sorted(database.tables)
        raise HostNotReadyError(
            database.label, f"has no table {', '.join(missing)}", advice="is it the right database?"
        )
    helper = SchemaHelper(None, schema)
    for table, columns in database.tables.items():
        there = set(tables[table]["columns"])
        helper.register_columns(table, [column for column in columns if column in there])
    return helper


def _follow_once(database: Database, listener: Listener, stopper: Stopper) -> None:
    """From connecting until the connection is lost, or nothing has come for too long.

    Raises:
        OSError, HostNotReadyError: whatever ended it.
    """
    replica = _Replica(database, _schema(database, stopper))
    try:
        given_up_at = time.monotonic() + CONNECT_TIMEOUT_S
        told, had_rows = -1, False
        while not stopper.is_stopped:
            replica.run()
            if replica.has_rows:
                had_rows = True
                if replica.change_seqno != told:
                    told = replica.change_seqno
                    listener.rows({table: dict(rows) for table, rows in replica.plain.items()})
            elif had_rows:
                raise ConnectionResetError(errno.ECONNRESET, "the connection was lost")
            elif time.monotonic() > given_up_at:
                raise TimeoutError(errno.ETIMEDOUT, f"no content came within {CONNECT_TIMEOUT_S:g} s")
            waiter = _Waiter()
            replica.wait(waiter)
            waiter.fd_wait(stopper, select.POLLIN)
            if not had_rows:
                waiter.timer_wait(int(CONNECT_TIMEOUT_S * 1000))
            waiter.block()
    finally:
        replica.close()


def follow(database: Database, listener: Listener, stopper: Stopper) -> None:
    """Follow a database until `stopper` says stop, connecting again as often as it takes.

    Args:
        database: what to follow.
        listener: who hears of it.
        stopper: ends it.

    Raises:
        UsageError: the remote is of no known kind.
    """
    check_remote(database.remote)
    backoff_s = FIRST_BACKOFF_S

    class _Heard:
        """Passes rows on; a connection that gave some starts the back-off anew."""

        def rows(self, tables: Tables) -> None:
            nonlocal backoff_s
            backoff_s = FIRST_BACKOFF_S
            listener.rows(tables)

        trouble = listener.trouble

    while not stopper.is_stopped:
        try:
            in_netns(database.netns, lambda: _follow_once(database, _Heard(), stopper))
        except (OSError, HostNotReadyError) as error:
            _tell(listener, stopper, _said(database, error))
        except Exception as error:  # noqa: BLE001  the library raises what it likes on bytes that make no sense
            _tell(listener, stopper, f"{database.label} at {database.remote}: its answer makes no sense: {error!r}")
        stopper.wait(backoff_s)
        backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)


def _tell(listener: Listener, stopper: Stopper, why: str) -> None:
    """Trouble, unless it is only that we were told to stop."""
    if not stopper.is_stopped:
        listener.trouble(why)


def _said(database: Database, error: OSError | HostNotReadyError) -> str:
    if isinstance(error, HostNotReadyError):
        return f"{error.where}: {error.problem}"
    return f"{database.label} at {database.remote}: {error.strerror or error}"


def read_once(database: Database, timeout_s: float = CONNECT_TIMEOUT_S) -> Tables:
    """The tables as they are now. Blocks.

    Raises:
        HostNotReadyError: the database cannot be read within `timeout_s`.
        UsageError: the remote is of no known kind.
    """
    stopper = Stopper()

    class _First:
        tables: Tables | None = None
        why = f"{database.label} at {database.remote}: gave no content within {timeout_s:g} s"

        def rows(self, tables: Tables) -> None:
            self.tables = tables
            stopper.stop()

        def trouble(self, why: str) -> None:
            self.why = why
            stopper.stop()

    heard = _First()
    timer = threading.Timer(timeout_s, stopper.stop)
    timer.start()
    try:
        follow(database, heard, stopper)
    finally:
        timer.cancel()
        timer.join()
        stopper.close()
    if heard.tables is None:
        where, _, problem = heard.why.partition(": ")
        raise HostNotReadyError(where, problem, advice="is ovsdb-server running, and may you read its socket?")
    return heard.tables
