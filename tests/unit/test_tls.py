"""TLS between agents and collector: who is let in, who is not, and that a revocation needs no restart."""

import os
import ssl
import time

import pytest
import trio
import trio.testing
from support.certificates import DAY_NS, authority, issue

from netprobe.errors import HostNotReadyError, RefusedError, UsageError
from netprobe.host import tls as host_tls
from netprobe.host.tls import HANDSHAKE_S, ClientTls, Credentials, ServerTls, accept, dial, why_broken
from netprobe.plan.grants import Grants, Role


@pytest.fixture(scope="module")
def ca(tmp_path_factory):
    made = authority(tmp_path_factory.mktemp("pki") / "a")
    issue(made, "c1", "collector", addresses=["127.0.0.1", "c1.example"])
    issue(made, "hv1", "vswitch")
    return made


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    made = authority(tmp_path_factory.mktemp("pki") / "b")
    issue(made, "c1", "collector")
    issue(made, "hv1", "vswitch")
    return made


@pytest.fixture
def server(ca):
    return ServerTls(Credentials.in_folder(ca.folder, "c1"))


def meet(server, client_context, server_name=None, *, with_dial=None):
    """A handshake over a connection in memory: what each side got, or why not."""

    async def collector(stream, outcome):
        try:
            secure, identity = await accept(stream, server)
            outcome["collector"] = identity
            await secure.send_all(b"welcome")
            await secure.receive_some(1)  # until the other side is done
        except (RefusedError, HostNotReadyError) as error:
            outcome["collector"] = error
        except trio.BrokenResourceError:
            pass
        await trio.aclose_forcefully(stream)

    async def agent(stream, outcome):
        try:
            if with_dial is None:
                secure = trio.SSLStream(stream, client_context, server_hostname=server_name)
                await secure.do_handshake()
                outcome["agent"] = "done"
            else:
                secure, outcome["agent"] = await dial(stream, with_dial)
            outcome["data"] = bytes(await secure.receive_some(100))
        except (RefusedError, HostNotReadyError) as error:
            outcome["agent"] = error
        except trio.BrokenResourceError as error:
            outcome["broken"] = why_broken(error)
        await trio.aclose_forcefully(stream)

    async def main():
        outcome = {}
        ours, theirs = trio.testing.memory_stream_pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(collector, ours, outcome)
            nursery.start_soon(agent, theirs, outcome)
        return outcome

    return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.5))


def context_of(ca, name=None):
    """A client that checks nothing of its own, to see what the collector does."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if name:
        context.load_cert_chain(ca.folder / f"{name}.crt", ca.folder / f"{name}.key")
    return context


def test_an_agent_and_a_collector_know_each_other(ca, server):
    outcome = meet(server, None, with_dial=ClientTls(Credentials.in_folder(ca.folder, "hv1")))
    assert (outcome["collector"].name, outcome["collector"].role) == ("hv1", Role.VSWITCH)
    assert outcome["collector"].grants == Grants(("hv1/*",))
    assert (outcome["agent"].name, outcome["agent"].role) == ("c1", Role.COLLECTOR)
    assert outcome["data"] == b"welcome"


def test_over_real_sockets_too(ca, server):
    """A loopback connection, as programs make it; the encryption is TLS 1.3."""

    async def serve(listener, got):
        stream = await listener.accept()
        secure, identity = await accept(stream, server)
        got.append(identity.name)
        await secure.send_all(secure.version().encode())
        assert await secure.receive_some(10) == b""
        await secure.aclose()

    async def main():
        got = []
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        async with trio.open_nursery() as nursery, listener:
            nursery.start_soon(serve, listener, got)
            stream = await trio.open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1])
            secure, identity = await dial(stream, ClientTls(Credentials.in_folder(ca.folder, "hv1"), "127.0.0.1"))
            got += [identity.name, bytes(await secure.receive_some(100)).decode()]
            await secure.aclose()
        return got

    assert sorted(trio.run(main)) == ["TLSv1.3", "c1", "hv1"]


# --- whom a collector does not let in ---


def refused(outcome, *words):
    assert isinstance(outcome["collector"], RefusedError), outcome
    assert any(word in str(outcome["collector"]) for word in words), outcome["collector"]
    assert "data" not in outcome, "something was said to somebody unknown"
    return outcome


def test_nobody_without_a_certificate(ca, server):
    outcome = refused(meet(server, context_of(ca)), "did not return a certificate")
    assert "certificate required" in outcome["broken"]


def test_nobody_of_another_authority(foreign, server):
    refused(meet(server, context_of(foreign, "hv1")), "another authority issued it")


def test_nobody_whose_certificate_is_over(ca, server):
    issue(ca, "old1", "vswitch", now_ns=time.time_ns() - 20 * DAY_NS, days=10)
    outcome = refused(meet(server, context_of(ca, "old1")), "has expired")
    assert "expired" in outcome["broken"]


def test_nobody_whose_certificate_is_not_yet_valid(ca, server):
    issue(ca, "new1", "vswitch", now_ns=time.time_ns() + DAY_NS)
    refused(meet(server, context_of(ca, "new1")), "not yet valid")


def test_a_revoked_certificate_is_refused_at_once_and_a_connection_that_it_has_can_be_found(ca):
    server = ServerTls(Credentials.in_folder(ca.folder, "c1"))
    issue(ca, "hv9", "vswitch")
    identity = meet(server, context_of(ca, "hv9"))["collector"]
    assert not server.refresh()
    ca.revoke("hv9", time.time_ns())
    assert server.refresh()
    assert server.is_revoked(identity)
    outcome = refused(meet(server, context_of(ca, "hv9")), "revoked")
    assert "revoked" in outcome["broken"]
    assert meet(server, context_of(ca, "hv1"))["collector"].name == "hv1"


def test_a_revocation_counts_without_a_restart(ca, server):
    """`accept` looks at the list itself."""
    issue(ca, "hv8", "vswitch")
    assert meet(server, context_of(ca, "hv8"))["collector"].name == "hv8"
    ca.revoke("hv8", time.time_ns())
    refused(meet(server, context_of(ca, "hv8")), "revoked")


def test_another_collector_does_not_dial_in(ca, server):
    issue(ca, "c2", "collector")
    refused(meet(server, context_of(ca, "c2")), "unsuitable certificate purpose", "unsupported certificate purpose")


def test_nobody_who_speaks_an_older_tls(ca, server):
    context = context_of(ca, "hv1")
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    outcome = refused(meet(server, context), "unsupported protocol")
    assert "protocol version" in outcome["broken"]


def test_a_session_is_not_resumed_so_the_list_is_asked_each_time(ca, server):
    context = context_of(ca, "hv1")

    async def serve(stream):
        secure, _ = await accept(stream, server)
        await secure.send_all(b"x")  # tickets would come with the first data

    async def main():
        ours, theirs = trio.testing.memory_stream_pair()
        secure = trio.SSLStream(theirs, context)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, ours)
            await secure.do_handshake()
            assert await secure.receive_some(1) == b"x"
        return secure.session

    assert not trio.run(main).has_ticket


@pytest.mark.parametrize("octets", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + bytes(200), b"\0" * 50])
def test_garbage_is_refused(server, octets):
    async def main():
        ours, theirs = trio.testing.memory_stream_pair()
        await theirs.send_all(octets)
        await theirs.send_eof()
        with pytest.raises((RefusedError, HostNotReadyError), match="TLS handshake with the peer"):
            await accept(ours, server)

    trio.run(main)


def test_a_handshake_that_never_ends_is_given_up(server):
    async def main():
        ours, theirs = trio.testing.memory_stream_pair()
        with pytest.raises(HostNotReadyError, match="took longer than 5 s"):
            await accept(ours, server)
        assert trio.current_time() == pytest.approx(begin + HANDSHAKE_S)
        await theirs.aclose()

    clock = trio.testing.MockClock(autojump_threshold=0)
    begin = clock.current_time()
    trio.run(main, clock=clock)


# --- what an agent does not believe ---


@pytest.mark.parametrize(
    ("credentials", "name", "words"),
    [
        (
            lambda ca, foreign: Credentials.in_folder(foreign.folder, "hv1"),
            "",
            "another authority",
        ),
        (lambda ca, foreign: Credentials.in_folder(ca.folder, "hv1"), "elsewhere.example", "mismatch"),
        (lambda ca, foreign: Credentials.in_folder(ca.folder, "hv1"), "10.9.9.9", "mismatch"),
    ],
)
def test_a_collector_of_another_authority_or_name_is_refused(ca, foreign, server, credentials, name, words):
    outcome = meet(server, None, with_dial=ClientTls(credentials(ca, foreign), name))
    assert isinstance(outcome["agent"], RefusedError)
    assert words in str(outcome["agent"])


def test_a_collector_that_is_named_rightly_is_believed(ca, server):
    hv1 = Credentials.in_folder(ca.folder, "hv1")
    for name in ("c1.example", "127.0.0.1", ""):
        assert meet(server, None, with_dial=ClientTls(hv1, name))["agent"].name == "c1"


def test_a_stolen_agents_certificate_makes_no_collector(ca):
    """The thief serves with it; an agent of the same authority does not believe it."""
    thief = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    thief.load_cert_chain(ca.folder / "hv1.crt", ca.folder / "hv1.key")

    async def serve(stream):
        with pytest.raises(trio.BrokenResourceError):
            await trio.SSLStream(stream, thief, server_side=True).do_handshake()

    async def main():
        ours, theirs = trio.testing.memory_stream_pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, ours)
            with pytest.raises(RefusedError, match="purpose"):
                await dial(theirs, ClientTls(Credentials.in_folder(ca.folder, "hv1")))

    trio.run(main)


def test_an_agent_that_has_the_list_refuses_a_revoked_collector(ca):
    issue(ca, "c7", "collector")
    server = ServerTls(Credentials.in_folder(ca.folder, "c7"))
    ca.revoke("c7", time.time_ns())
    hv1 = Credentials.in_folder(ca.folder, "hv1")
    outcome = meet(server, None, with_dial=ClientTls(hv1))
    assert isinstance(outcome["agent"], RefusedError)
    assert "revoked" in str(outcome["agent"])
    without = Credentials(hv1.ca, hv1.certificate, hv1.key)
    assert meet(server, None, with_dial=ClientTls(without))["agent"].name == "c7"


# --- files ---


def test_a_program_does_not_start_with_anothers_certificate(ca):
    with pytest.raises(RefusedError, match="of role vswitch"):
        ServerTls(Credentials.in_folder(ca.folder, "hv1"))
    with pytest.raises(RefusedError, match="of role collector"):
        ClientTls(Credentials.in_folder(ca.folder, "c1"))


def test_a_collector_needs_the_revocation_list(ca):
    files = Credentials.in_folder(ca.folder, "c1")
    with pytest.raises(UsageError, match="no revocation list"):
        ServerTls(Credentials(files.ca, files.certificate, files.key))


def test_missing_mixed_and_open_files_are_said(ca, tmp_path):
    files = Credentials.in_folder(ca.folder, "hv1")
    with pytest.raises(UsageError, match=r"hv2\.key: is not there"):
        ClientTls(Credentials.in_folder(ca.folder, "hv2"))
    with pytest.raises(UsageError, match="cannot be used with its key: key values mismatch"):
        ClientTls(Credentials(files.ca, files.certificate, ca.folder / "c1.key"))
    copy = tmp_path / "hv1.key"
    copy.write_bytes(files.key.read_bytes())
    copy.chmod(0o644)
    with pytest.raises(RefusedError, match="others can use this key"):
        ClientTls(Credentials(files.ca, files.certificate, copy))


def test_a_list_that_is_damaged_later_lets_nobody_new_in(ca, tmp_path):
    crl = tmp_path / "crl.pem"
    crl.write_bytes((ca.folder / "crl.pem").read_bytes())
    files = Credentials.in_folder(ca.folder, "c1")
    server = ServerTls(Credentials(files.ca, files.certificate, files.key, crl))
    crl.write_text("nonsense")
    for _ in range(2):
        with pytest.raises(UsageError, match=r"crl\.pem: holds no revocation list"):
            server.refresh()
    crl.unlink()
    with pytest.raises(UsageError, match="cannot be read"):
        server.refresh()
    os.link(ca.folder / "crl.pem", crl)
    assert server.refresh()


def test_why_broken_digs_for_the_cause():
    error = trio.BrokenResourceError()
    assert why_broken(error) == "the connection broke"
    error.__cause__ = OSError(104, "Connection reset by peer")
    assert why_broken(error) == "Connection reset by peer"
    assert host_tls.HANDSHAKE_S < 10
