"""Following a database through what databases do: change, die, come back, hang, talk nonsense.

A private ovsdb-server with Open vSwitch's schema, in a folder of the test; nothing of a switch runs.
"""

import datetime as dt
import os
import resource
import signal
import socket
import subprocess
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from support.waiting import until

from netprobe.errors import HostNotReadyError, UsageError
from netprobe.host import iproute, ovsdb, ovsdb_idl
from netprobe.host.ovs import SCHEMA
from netprobe.host.ovsdb_idl import Database, Stopper, TlsFiles, follow, read_once, use_tls

pytestmark = pytest.mark.system
TABLES = {"Bridge": ("name", "external_ids")}


class Server:
    """One ovsdb-server, that can be started again after it was killed."""

    def __init__(self, folder):
        self.socket = folder / "db.sock"
        self._file = folder / "conf.db"
        subprocess.run(["ovsdb-tool", "create", self._file, SCHEMA], check=True)
        self._pid_file = folder / "pid"
        self.start()
        self.vsctl("--no-wait", "init")

    def start(self, *more, netns=""):
        words = ["ip", "netns", "exec", netns] if netns else []
        words += ["ovsdb-server", "-vconsole:off", "-vsyslog:off", str(self._file), f"--remote=punix:{self.socket}"]
        words += [*more, f"--pidfile={self._pid_file}", "--detach", "--no-chdir", f"--unixctl={self.socket}.ctl"]
        subprocess.run(words, check=True, timeout=10)
        self.pid = int(self._pid_file.read_text())

    def vsctl(self, *words):
        subprocess.run(["ovs-vsctl", f"--db=unix:{self.socket}", "--timeout=5", *words], check=True, timeout=10)

    def signal(self, number):
        os.kill(self.pid, number)

    @property
    def database(self):
        return Database("test", f"unix:{self.socket}", "Open_vSwitch", TABLES)


@pytest.fixture
def server(tmp_path):
    made = Server(tmp_path)
    try:
        yield made
    finally:
        with suppress(ProcessLookupError):
            made.signal(signal.SIGCONT)
            made.signal(signal.SIGKILL)


class Heard:
    """Everything that a follower said, in order."""

    def __init__(self):
        self.said = []

    def rows(self, tables):
        self.said.append(sorted(row["name"] for row in tables["Bridge"].values()))

    def trouble(self, why):
        self.said.append(why)

    @property
    def last(self):
        return self.said[-1] if self.said else None


@contextmanager
def followed(database):
    heard, stopper = Heard(), Stopper()
    thread = threading.Thread(target=follow, args=(database, heard, stopper))
    thread.start()
    try:
        yield heard
    finally:
        stopper.stop()
        began = time.monotonic()
        thread.join(5)
        assert not thread.is_alive()
        assert time.monotonic() - began < 0.5  # wherever it waits
        stopper.close()


def test_every_change_is_heard(server, capfd):
    """Created, renamed by its columns, deleted; and the library logs nothing."""
    with followed(server.database) as heard:
        until(lambda: heard.last == [])
        server.vsctl("--no-wait", "add-br", "one", "--", "add-br", "two")
        until(lambda: heard.last == ["one", "two"])
        server.vsctl("--no-wait", "del-br", "one")
        until(lambda: heard.last == ["two"])
    assert capfd.readouterr() == ("", "")


def test_a_server_that_dies_is_said_once_an_attempt_and_is_followed_again_when_it_is_back(server):
    """What was heard before is never taken back: a lost connection is trouble, not an empty table."""
    server.vsctl("--no-wait", "add-br", "one")
    with followed(server.database) as heard:
        until(lambda: heard.last == ["one"])
        server.signal(signal.SIGKILL)
        until(lambda: isinstance(heard.last, str))
        assert "the connection was lost" in heard.last
        server.start()
        until(lambda: heard.last == ["one"])
        server.vsctl("--no-wait", "add-br", "two")
        until(lambda: heard.last == ["one", "two"])
    assert [] not in heard.said


def test_back_off_is_bounded(server, monkeypatch):
    """Ever fewer attempts, up to a limit."""
    waits = []
    monkeypatch.setattr(ovsdb_idl, "MAX_BACKOFF_S", 1.0)

    def wait(stopper, seconds):
        waits.append(seconds)
        if len(waits) == 7:
            stopper.stop()

    monkeypatch.setattr(Stopper, "wait", wait)
    server.signal(signal.SIGKILL)
    until(lambda: not _answers(server.socket))
    stopper = Stopper()
    follow(server.database, Heard(), stopper)
    stopper.close()
    assert waits == [0.25, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0]


def _answers(path):
    with socket.socket(socket.AF_UNIX) as sock:
        return sock.connect_ex(str(path)) == 0


def test_a_server_that_hangs_is_noticed(server, monkeypatch):
    """Also on a Unix socket, which the library by itself would not probe."""
    monkeypatch.setattr(ovsdb_idl, "PROBE_INTERVAL_MS", 1000)
    monkeypatch.setattr(ovsdb_idl, "CONNECT_TIMEOUT_S", 0.5)
    with followed(server.database) as heard:
        until(lambda: heard.last == [])
        server.signal(signal.SIGSTOP)
        until(lambda: isinstance(heard.last, str), timeout_s=5)
        until(lambda: "gave no answer" in heard.last, timeout_s=5)
        server.signal(signal.SIGCONT)
        until(lambda: heard.last == [])


def test_only_wanted_columns_that_the_server_has_are_read(server):
    """A database of another release lacks some; a whole table that is missing is another database."""
    server.vsctl("--no-wait", "add-br", "one")
    remote = f"unix:{server.socket}"
    tables = read_once(Database("t", remote, "Open_vSwitch", {"Bridge": ("name", "of_the_future")}))
    assert [set(row) for row in tables["Bridge"].values()] == [{"name", "_uuid"}]
    with pytest.raises(HostNotReadyError, match="has no table Port_Binding"):
        read_once(Database("t", remote, "Open_vSwitch", {"Port_Binding": ("mac",)}))
    with pytest.raises(HostNotReadyError, match="unknown database"):
        read_once(Database("t", remote, "OVN_Southbound", {"Port_Binding": ("mac",)}))


def test_a_hosts_inventory_is_read_from_its_rows(server, tmp_path):
    """References between tables are resolved without following what they do not name."""
    ids = ["external_ids:iface-id=u1", 'external_ids:attached-mac="fa:16:3e:00:00:01"']
    server.vsctl(
        "--no-wait", "add-br", "br-int", "--", "add-port", "br-int", "tap1", "--", "set", "interface", "tap1", *ids
    )
    server.vsctl(
        "--no-wait", "set", "Open_vSwitch", ".", "external_ids:system-id=c1", "external_ids:ovn-encap-ip=10.9.0.1"
    )
    found = ovsdb.inventory_of("hv1", read_once(ovsdb.database(str(tmp_path), "hv1")))
    assert (found.host, found.chassis, found.encap_ips, found.is_offload_on) == ("hv1", "c1", ("10.9.0.1",), False)
    port = found.ports["u1"]
    assert (port.name, port.bridge, port.ofport, port.mac) == ("tap1", "br-int", 0, "fa:16:3e:00:00:01")


def test_of_several_remotes_one_that_answers_is_enough(server):
    """A cluster of databases is named with commas."""
    both = Database("t", f"unix:/nowhere/db.sock,unix:{server.socket}", "Open_vSwitch", TABLES)
    assert read_once(both) == {"Bridge": {}}


@pytest.mark.parametrize("remote", ["/run/db.sock", "ptcp:6641", "", "unix:/a,b:c"])
def test_remotes_of_another_kind_are_refused(remote):
    """Before any attempt."""
    with pytest.raises(UsageError, match=r"allowed: unix:…, tcp:…, ssl:…"):
        read_once(Database("t", remote, "Open_vSwitch", TABLES))


@pytest.fixture
def namespace():
    """A network namespace of its own, with nothing but a loopback."""
    name = f"np-idl-{os.getpid()}"
    iproute.add_namespaces([name])
    try:
        iproute.batch(["link set lo up"], netns=name)
        yield name
    finally:
        iproute.delete_namespaces([name])


def _certificate(folder, name, issuer=None):
    """A key and a certificate as PEM files, signed by `issuer` or by itself; (key, certificate) to sign others with."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    signer, issued_by = issuer or (key, subject)
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issued_by)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .sign(signer, hashes.SHA256())
    )
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / f"{name}.key").write_bytes(pem)
    (folder / f"{name}.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return key, subject


def test_remotes_over_tcp_and_tls_are_reached_from_their_namespace(server, namespace, tmp_path, monkeypatch):
    """As OVN's databases are in production: the reader shows a certificate, and looks at the server's."""
    issuer = _certificate(tmp_path, "ca")
    for name in ("server", "reader"):
        _certificate(tmp_path, name, issuer)
    server.signal(signal.SIGKILL)
    remotes = ["--remote=ptcp:6641:127.0.0.1", "--remote=pssl:6642:127.0.0.1"]
    files = [f"--private-key={tmp_path}/server.key", f"--certificate={tmp_path}/server.pem"]
    server.start(*remotes, *files, f"--ca-cert={tmp_path}/ca.pem", netns=namespace)
    assert read_once(Database("t", "tcp:127.0.0.1:6641", "Open_vSwitch", TABLES, namespace)) == {"Bridge": {}}
    over_tls = Database("t", "ssl:127.0.0.1:6642", "Open_vSwitch", TABLES, namespace)
    monkeypatch.setattr(ovsdb_idl.ovs.stream.Stream, "_SSL_private_key_file", None)
    with pytest.raises(UsageError, match="needs a certificate of ours, and none was given"):
        read_once(over_tls)
    use_tls(TlsFiles(f"{tmp_path}/reader.key", f"{tmp_path}/reader.pem", f"{tmp_path}/ca.pem"))
    assert read_once(over_tls) == {"Bridge": {}}
    with followed(over_tls) as heard:
        until(lambda: heard.last == [])
        server.vsctl("--no-wait", *(word for i in range(40) for word in ("--", "add-br", f"bridge-{i:02}")))
        until(lambda: heard.last == [f"bridge-{i:02}" for i in range(40)])


NONSENSE = [
    b"",
    b"\0" * 64,
    b"{" * 5000,
    b'{"id":0,"result":{},"error":null}',
    b'{"id":0,"result":{"tables":{"Bridge":{"columns":[]}}},"error":null}',
    b'{"id":0,"result":{"tables":{"Bridge":{"columns":{"name":{"type":7}}}},"name":"x","version":"1.0.0"},"error":null}',
    b'{"id":null,"method":"update","params":[null,{"Bridge":{"x":{"new":{"name":3}}}}]}',
    b"[1,2,3]",
    b'"' + b"x" * 100_000,
]


@pytest.mark.parametrize("answer", NONSENSE)
def test_a_server_that_talks_nonsense_is_trouble_and_nothing_worse(tmp_path, monkeypatch, answer):
    """A follower outlives whatever it is told, and says that it cannot read it."""
    monkeypatch.setattr(ovsdb_idl, "CONNECT_TIMEOUT_S", 0.3)
    monkeypatch.setattr(ovsdb_idl, "FIRST_BACKOFF_S", 0.01)
    path = tmp_path / "db.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(8)
        listener.settimeout(0.05)
        is_over = threading.Event()

        def serve():
            kept = []
            while not is_over.is_set():
                with suppress(OSError):
                    sock, _ = listener.accept()
                    kept.append(sock)
                    sock.sendall(answer)
            for sock in kept:
                sock.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            with followed(Database("t", f"unix:{path}", "Open_vSwitch", TABLES)) as heard:
                until(lambda: len(heard.said) >= 2)
                assert all(isinstance(said, str) and said for said in heard.said)
        finally:
            is_over.set()
            thread.join()


def test_more_than_a_thousand_descriptors_are_no_obstacle(server):
    """select(2) ends at 1023; a collector with many agents does not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2000:
        pytest.skip(f"only {hard} descriptors allowed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (2000, hard))
    null = Path("/dev/null")
    files = [null.open() for _ in range(1100)]
    try:
        assert read_once(server.database) == {"Bridge": {}}
    finally:
        for file in files:
            file.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
