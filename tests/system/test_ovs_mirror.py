"""Mirrors in a switch's database: whose they are, which of them are nobody's any more, and what is left alone.

Network: none; a database server without its switch, as after a stop or before a start.
"""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.waiting import until

from netprobe.errors import HostNotReadyError
from netprobe.host import ovs_mirror, process
from netprobe.host.ovs import SCHEMA
from netprobe.host.ovs_mirror import PortMirror, orphaned_mirrors, remove_mirror

pytestmark = pytest.mark.system

BOOT = ovs_mirror.BOOT_ID.read_text().strip()
NAMESPACE = Path("/proc/self/ns/pid").stat().st_ino


@pytest.fixture
def database(tmp_path):
    """A database with two bridges, and what asks it."""
    process.run(["ovsdb-tool", "create", str(tmp_path / "conf.db"), str(SCHEMA)])
    words = ["ovsdb-server", "-vconsole:off", f"--remote=punix:{tmp_path}/db.sock", f"--unixctl={tmp_path}/ctl"]

    def vsctl(*words):
        return process.run(["ovs-vsctl", "--no-wait", f"--db=unix:{tmp_path}/db.sock", *words])

    with subprocess.Popen([*words, str(tmp_path / "conf.db")]) as server:
        try:
            until((tmp_path / "db.sock").is_socket)
            vsctl("init", "--", "add-br", "br-int", "--", "add-br", "br-ex", "--", "add-port", "br-int", "vm1")
            yield SimpleNamespace(rundir=str(tmp_path), vsctl=vsctl)
        finally:
            server.kill()


def mirror(database, name, owner, bridge="br-int", mark="mirror"):
    """A mirror as netprobe makes it, by its first way."""
    ids = [f"external_ids:netprobe={mark}", f"external_ids:netprobe-owner={owner}"] if owner else []
    database.vsctl(
        *(
            "add-port",
            bridge,
            name,
            "--",
            "set",
            "Port",
            name,
            *(ids[:1] or ["tag=7"]),
            "--",
            f"--id=@{name}",
            "get",
            "Port",
            name,
        ),
        *("--", "--id=@m", "create", "Mirror", f"name={name}", f"output_port=@{name}", *ids),
        *("--", "add", "Bridge", bridge, "mirrors", "@m"),
    )


def names(database):
    return sorted(database.vsctl("--bare", "--columns=name", "list", "Mirror").split())


def own(pid, ticks, *, boot=BOOT, namespace=NAMESPACE):
    return f"{boot}/{namespace}/{pid}/{ticks}"


def test_only_mirrors_of_ours_whose_run_is_gone_are_orphans(database):
    """Gone: another boot's, an ended process's, a pid that is somebody else's now. Also the only one of its bridge."""
    pid, ticks = os.getpid(), process.start_ticks(os.getpid())
    mirror(database, "bootedi", own(pid, ticks, boot="0d4d3ca5-7c4c-4a0b-b6c3-4ab0a2a5d1f0"), bridge="br-ex")
    mirror(database, "endedi", own(2**22 + 1, 5))
    mirror(database, "reusedi", own(pid, ticks + 1))
    mirror(database, "livei", own(pid, ticks))
    mirror(database, "operator", "")
    mirror(database, "foreign", own(2**22 + 1, 5), mark="other")
    mirror(database, "damagedi", "x/y")
    mirror(database, "damaged2i", f"{BOOT}/1/-1/²")
    found = orphaned_mirrors(database.rundir, "hv1")
    rundir = database.rundir
    assert found == [
        PortMirror(rundir, "hv1", "br-ex", "", "booted"),
        PortMirror(rundir, "hv1", "br-int", "", "ended"),
        PortMirror(rundir, "hv1", "br-int", "", "reused"),
    ]
    for each in found:
        remove_mirror(each)
    assert names(database) == ["damaged2i", "damagedi", "foreign", "livei", "operator"]
    assert set(names(database)) | {"vm1"} == set(database.vsctl("list-ports", "br-int").split())
    assert orphaned_mirrors(database.rundir, "hv1") == []


def test_an_operators_mirror_of_the_same_name_is_left_alone(database):
    mirror(database, "npm1-0i", "")
    remove_mirror(PortMirror(database.rundir, "hv1", "br-int", "vm1", "npm1-0"))
    assert names(database) == ["npm1-0i"]
    assert "npm1-0i" in database.vsctl("list-ports", "br-int").split(), "where its copies go"


OWNER = "from netprobe.host import ovs_mirror; import sys; print(ovs_mirror._owner(), flush=True); sys.stdin.read()"


def test_a_run_in_a_container_is_there_until_it_ends(database):
    """It has another number there; its mirror must not be taken from it by `clean` on the host."""
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", OWNER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        owner = run.stdout.readline().strip()
        assert owner.startswith(BOOT)
        assert owner.split("/")[1] != str(NAMESPACE)
        assert owner.split("/")[2] == "1"
        mirror(database, "insidei", owner)
        assert orphaned_mirrors(database.rundir, "hv1") == []
        run.communicate()
    assert [each.stem for each in orphaned_mirrors(database.rundir, "hv1")] == ["inside"]


def test_from_within_a_container_nothing_outside_it_is_an_orphan(database, monkeypatch):
    mirror(database, "outsidei", own(2**22 + 1, 5))
    assert len(orphaned_mirrors(database.rundir, "hv1")) == 1
    monkeypatch.setattr(process, "_pid_namespace", lambda _: NAMESPACE + 1)
    assert orphaned_mirrors(database.rundir, "hv1") == []


def test_a_switch_that_may_run_elsewhere_is_waited_for(database, tmp_path, monkeypatch):
    """Its pid says nothing where its process can't be seen."""
    monkeypatch.setattr(ovs_mirror, "TIMEOUT_S", 1)
    monkeypatch.setattr(ovs_mirror, "sees_all", lambda: False)
    mirror(database, "npm1-0i", own(1, 1))
    (tmp_path / "ovs-vswitchd.pid").write_text(f"{2**22 + 1}\n")
    with pytest.raises(HostNotReadyError, match="Alarm clock"):
        remove_mirror(PortMirror(database.rundir, "hv1", "br-int", "vm1", "npm1-0"))


def test_a_switch_that_runs_and_does_not_take_its_mirror_away_is_an_error(database, tmp_path, monkeypatch):
    """The row is gone, what it made may not be."""
    monkeypatch.setattr(ovs_mirror, "TIMEOUT_S", 1)
    mirror(database, "npm1-0i", own(1, 1))
    (tmp_path / "ovs-vswitchd.pid").write_text(f"{os.getpid()}\n")
    with pytest.raises(HostNotReadyError, match="Alarm clock"):
        remove_mirror(PortMirror(database.rundir, "hv1", "br-int", "vm1", "npm1-0"))
    assert names(database) == []
