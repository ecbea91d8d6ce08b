"""The state file: what is written is read again, what is foreign is refused, one program at a time writes it."""

import json

import pytest

from netprobe.errors import HostNotReadyError
from netprobe.host.process import ProcessRecord
from netprobe.lab import config, journal, layout, shapes, state, topology

ENDS = topology.endpoints(config.load("single"))
SEGMENT = "vm1.backend..vm2.backend"


@pytest.fixture
def places(tmp_path):
    here = state.Places(tmp_path)
    here.lab.mkdir()
    return here


def full(places) -> state.State:
    spec = layout.FaultSpec(delay_ns=300_000, loss=0.02, seed=7, expose=True)
    splice = layout.locate(SEGMENT, shapes.SHAPES["single"], ENDS, expose=True)
    return state.State(
        "single",
        places.lab,
        endpoints=ENDS,
        rules={"0x1": {"port": "vm1", "group": "g", "direction": "ingress", "rule": "all", "kind": "security-group"}},
        faults=(state.FaultRecord(splice, spec, "/x/truth.bin", "/x/truth.json", active=True),),
        processes=(ProcessRecord("ovsdb-server", ("ovsdb-server", "x"), 7, 8),),
        namespaces=(state.NamespaceRecord("hv1", 9),),
    )


def test_what_is_written_is_read_again(places):
    lab = full(places)
    journal.Journal(lab, places.state).write()
    assert state.load(places.state) == lab
    assert places.state.stat().st_mode & 0o777 == 0o600


def test_the_document_has_the_keys_of_the_contract(places):
    document = full(places).to_json()
    assert list(document) == [
        *("schema", "name", "run_dir", "hosts", "guests", "bypasses", "points", "segments"),
        *("ovn", "management", "rules", "faults", "processes", "namespaces", "moving", "machine"),
    ]
    host = document["hosts"][0]
    assert list(host)[:6] == ["name", "netns", "bridge", "ovs_rundir", "allowlist", "zone"]
    assert (host["uplink"], host["encap_ips"], host["chassis"], host["management_ip"]) == ([], [], "", "")
    guest = [
        *("name", "host", "netns", "device", "mac", "ipv4", "ipv6", "groups"),
        *("network", "prefixes", "gateway_mac", "floating", "behind_nat", "agent", "clock", "port", "chain"),
    ]
    assert [list(entry) for entry in document["guests"]] == [guest] * 3
    assert [list(entry) for entry in document["bypasses"]] == [[*guest, "copy_of"]]
    assert document["guests"][0]["port"]["device"] == "rr-vm1"
    assert document["guests"][0]["chain"] == ["vm1.guest", "vm1.backend", "vm1.relay"]
    assert {"id": "hv1.vswitch", "kind": "vswitch", "host": "hv1", "netns": "", "device": ""} in document["points"]


def pair(places) -> state.State:
    lab = config.load("pair")
    ends = topology.endpoints(lab)
    splice = layout.locate("hv2.nic..vm2.backend", lab.shape, ends, expose=True)
    record = state.FaultRecord(splice, layout.FaultSpec(loss=0.5, expose=True), "/x/t.bin", "/x/t.json", active=True)
    return state.State("pair", places.lab, endpoints=ends, faults=(record,))


def test_the_pair_is_read_again_with_its_relays_and_moves(places):
    lab = pair(places)
    lab.moving = "vm1"
    journal.Journal(lab, places.state).write()
    assert state.load(places.state) == lab


def test_the_document_of_the_pair_says_how_hypervisors_are_joined_and_guests_are_translated(places):
    document = pair(places).to_json()
    assert document["hosts"][1] == {
        "name": "hv2",
        "netns": "hv2",
        "bridge": "br-int",
        "zone": None,
        "chassis": "hv2",
        "ovs_rundir": f"{places.lab}/hv2",
        "allowlist": f"{places.lab}/hv2.allow.toml",
        "uplink": ["hv2.relay", "hv2.nic", "fabric.hv2"],
        "encap_ips": ["172.30.0.2"],
        "management_ip": "172.31.0.12",
    }
    guests = {guest["name"]: guest for guest in document["guests"]}
    keys = ("network", "prefixes", "gateway_mac", "floating", "behind_nat")
    assert [guests["vm1"][key] for key in keys] == [
        "net1",
        ["10.1.0.0/24", "fd00:1::/64"],
        "fa:16:3e:00:01:01",
        "172.24.0.101",
        {"ext": "172.24.0.101"},
    ]
    assert (guests["vm4"]["floating"], guests["vm4"]["behind_nat"]) == (None, {"ext": "172.24.0.1"})
    assert guests["ext1"]["behind_nat"] == {}
    assert [bypass["name"] for bypass in document["bypasses"]] == ["bypass1", "bypass2"]
    assert document["management"] == {"netns": "central", "ip": "172.31.0.1"}
    assert document["ovn"] == {
        "northbound": f"unix:{places.lab}/central/ovnnb_db.sock",
        "southbound": f"unix:{places.lab}/central/ovnsb_db.sock",
    }


def test_a_segment_shows_the_fault_that_it_carries_and_no_other_does(places):
    document = full(places).to_json()
    faulty = [segment for segment in document["segments"] if segment["fault"]]
    assert [segment["id"] for segment in faulty] == ["vm1.backend..vm1.relay"]
    assert faulty[0]["fault"] == document["faults"][0]
    assert faulty[0]["fault"]["segment"] == SEGMENT
    assert faulty[0]["fault"]["log"] == "/x/truth.bin"


def test_a_half_made_lab_has_no_hosts_points_or_segments(places):
    document = state.State("single", places.lab, processes=(ProcessRecord("x", ("x",)),)).to_json()
    assert (document["hosts"], document["points"], document["segments"]) == ([], [], [])
    assert document["processes"][0]["pid"] == 0


def test_no_file_is_no_lab(tmp_path):
    assert state.load(tmp_path / "state.json") is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 1}', '{"schema": 1, "guests": 3}', "\x00"])
def test_a_damaged_file_says_so_and_what_to_do(tmp_path, text):
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(HostNotReadyError, match=r"is damaged.*by hand"):
        state.load(tmp_path / "state.json")


def test_a_newer_schema_is_refused(places):
    document = full(places).to_json() | {"schema": 2}
    places.state.write_text(json.dumps(document))
    with pytest.raises(HostNotReadyError, match="schema 2"):
        state.load(places.state)


def test_a_journal_knows_of_a_process_before_it_runs_and_after(places):
    lab = state.State("single", places.lab)
    book = journal.Journal(lab, places.state)
    book.intend("relay", ("python", "-m", "x"))
    assert state.load(places.state).processes == (ProcessRecord("relay", ("python", "-m", "x")),)
    book.started("relay", ProcessRecord("python", ("python", "-m", "x"), 5, 6))
    assert state.load(places.state).processes == (ProcessRecord("relay", ("python", "-m", "x"), 5, 6),)
    book.forget("relay")
    assert state.load(places.state).processes == ()


def test_a_second_program_is_told_who_holds_the_lock(tmp_path):
    lock = tmp_path / "base" / "lab.lock"
    with (
        journal.locked(lock),
        pytest.raises(HostNotReadyError, match=r"process \d+\) is changing it"),
        journal.locked(lock),
    ):
        pass
    with journal.locked(lock):  # free again
        lock.unlink()
    with journal.locked(lock):  # and after its removal by the holder
        assert lock.exists()


def test_a_run_directory_that_is_too_long_for_sockets_is_refused(monkeypatch):
    monkeypatch.setenv("NETPROBE_RUN_DIR", "/tmp/" + "x" * 90)
    with pytest.raises(HostNotReadyError, match="too long"):
        state.Places.from_environment()
