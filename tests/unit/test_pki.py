"""The authority: what it issues, lists and revokes, what it refuses, and who may touch its files."""

import json
import os
import random

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from support.certificates import DAY_NS, authority, issue

from netprobe.cli.main import main
from netprobe.errors import RefusedError, UsageError
from netprobe.host import pki
from netprobe.host.certificates import identity_of_untrusted, read_certificate, read_revoked, revoked_serials
from netprobe.host.pki import Authority
from netprobe.plan.grants import Grants, InjectGrant, Role

NOW = 1_795_000_000 * 1_000_000_000
HV1 = Grants(("hv1/*",), (InjectGrant("vm*", 20_000),))


@pytest.fixture
def ca(tmp_path):
    return authority(tmp_path / "pki", NOW)


def der(path):
    return read_certificate(path).public_bytes(Encoding.DER)


def test_a_certificate_names_its_holder_and_what_it_may_do(ca):
    files = ca.issue("hv1", Role.VSWITCH, HV1, NOW, days=10)
    identity = identity_of_untrusted(der(files.certificate))
    assert (identity.name, identity.role, identity.grants) == ("hv1", Role.VSWITCH, HV1)
    assert (identity.not_before_ns, identity.not_after_ns) == (NOW - 300_000_000_000, NOW + 10 * DAY_NS)
    assert [identity.is_expired(NOW + days * DAY_NS) for days in (9, 11)] == [False, True]
    assert files.issued.identity == identity
    assert [path.name for path in (files.key, files.certificate)] == ["hv1.key", "hv1.crt"]


@pytest.mark.parametrize(
    ("role", "usage"), [("collector", "SERVER_AUTH"), ("vswitch", "CLIENT_AUTH"), ("operator", "CLIENT_AUTH")]
)
def test_a_collectors_certificate_serves_and_all_others_dial(ca, role, usage):
    certificate = read_certificate(issue(ca, "x1", role, now_ns=NOW).certificate)
    found = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(found) == [getattr(ExtendedKeyUsageOID, usage)]
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_a_collectors_addresses_stand_in_its_certificate(ca):
    certificate = read_certificate(
        issue(ca, "c1", "collector", now_ns=NOW, addresses=["10.0.0.1", "fd00::1", "c1.example"]).certificate
    )
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(a) for a in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.1", "fd00::1"]
    assert names.get_values_for_type(x509.DNSName) == ["c1.example"]


def test_keys_are_their_owners_alone(ca, tmp_path):
    ca.issue("hv1", Role.VSWITCH, HV1, NOW, out=tmp_path / "out")
    for path in (ca.folder / "ca.key", tmp_path / "out" / "hv1.key"):
        assert path.stat().st_mode & 0o777 == 0o600
    for path in (ca.folder, ca.folder / "issued", tmp_path / "out"):
        assert path.stat().st_mode & 0o777 == 0o700
    assert not list(tmp_path.rglob("*.new"))


def test_everything_that_was_issued_is_listed_and_what_is_revoked_says_when(ca):
    for days, name in enumerate(("hv1", "hv2", "vm1")):
        ca.issue(name, Role.VSWITCH, Grants((f"{name}/*",)), NOW + days * DAY_NS, days=5)
    (revoked,) = ca.revoke("hv2", NOW + 3 * DAY_NS)
    assert revoked.identity.name == "hv2"
    listed = ca.everything()
    assert [(i.identity.name, i.revoked_ns) for i in listed] == [
        ("hv1", None),
        ("hv2", NOW + 3 * DAY_NS),
        ("vm1", None),
    ]
    assert [i.is_valid(NOW + 4 * DAY_NS) for i in listed] == [True, False, True]
    assert revoked_serials(read_revoked(ca.folder / "crl.pem")) == {listed[1].identity.serial}


def test_a_serial_revokes_one_certificate_and_a_name_all_of_it(ca, tmp_path):
    serials = [ca.issue("hv1", Role.VSWITCH, HV1, NOW, out=tmp_path / str(n)).issued.identity.serial for n in range(3)]
    ca.revoke(f"{serials[1]:x}", NOW)
    assert revoked_serials(read_revoked(ca.folder / "crl.pem")) == {serials[1]}
    assert {i.identity.serial for i in ca.revoke("hv1", NOW)} == {serials[0], serials[2]}
    assert revoked_serials(read_revoked(ca.folder / "crl.pem")) == set(serials)
    with pytest.raises(UsageError, match="revoked already"):
        ca.revoke("hv1", NOW)
    with pytest.raises(UsageError, match="Did you mean 'hv1'"):
        ca.revoke("hv11", NOW)


def test_each_list_is_newer_than_the_one_before_and_as_long_valid_as_the_authority(ca):
    numbers = []
    for name in ("a", "b"):
        ca.issue(name, Role.VSWITCH, Grants(), NOW)
        ca.revoke(name, NOW)
        crl = read_revoked(ca.folder / "crl.pem")
        numbers.append(crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number)
        assert crl.next_update_utc >= ca.certificate.not_valid_after_utc
    assert numbers == [2, 3]


def test_a_valid_certificate_is_not_overwritten_a_revoked_or_expired_one_is(ca):
    first = ca.issue("hv1", Role.VSWITCH, HV1, NOW, days=5)
    with pytest.raises(UsageError, match="is there already"):
        ca.issue("hv1", Role.VSWITCH, HV1, NOW)
    ca.revoke("hv1", NOW)
    second = ca.issue("hv1", Role.VSWITCH, HV1, NOW, days=5)
    assert second.issued.identity.serial != first.issued.identity.serial
    third = ca.issue("hv1", Role.VSWITCH, HV1, NOW + 6 * DAY_NS)
    assert identity_of_untrusted(der(third.certificate)) == third.issued.identity
    (ca.folder / "vm1.key").write_text("somebody's")
    with pytest.raises(UsageError, match=r"vm1\.key: is there already"):
        ca.issue("vm1", Role.GUEST, Grants(), NOW)
    assert (ca.folder / "vm1.key").read_text() == "somebody's"


def test_a_second_authority_in_one_folder_is_refused(ca):
    with pytest.raises(UsageError, match="is there already"):
        pki.init(ca.folder, NOW)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "../hv1"}, "cannot be used"),
        ({"name": "ca"}, "authority's own"),
        ({"name": "CRL"}, "authority's own"),
        ({"days": 0}, "allowed: 1 or more"),
        ({"days": 4000}, "the authority's own time"),
        ({"days": 10**12}, "the authority's own time"),
        ({"addresses": ["10.0.0.1"]}, "role collector"),
        ({"role": Role.COLLECTOR, "grants": Grants(), "addresses": ["a b"]}, "is no address"),
        ({"role": Role.COLLECTOR}, "agents only"),
        ({"role": Role.GUEST}, "its own point alone"),
        ({"now_ns": NOW + 3651 * DAY_NS}, "the authority expired on"),
    ],
)
def test_what_cannot_be_issued_is_refused_and_leaves_nothing(ca, change, message):
    arguments = {"name": "hv1", "role": Role.VSWITCH, "grants": HV1, "now_ns": NOW, **change}
    before = sorted(ca.folder.rglob("*"))
    with pytest.raises(UsageError, match=message):
        ca.issue(**arguments)
    assert sorted(ca.folder.rglob("*")) == before


@pytest.mark.parametrize("days", [0, -1, 36501])
def test_an_authority_lives_a_sane_time(tmp_path, days):
    with pytest.raises(UsageError, match="1 to 36500"):
        pki.init(tmp_path / "pki", NOW, days=days)


# --- files that others could have touched, or that are damaged ---


def test_a_key_that_others_can_read_is_refused(ca):
    (ca.folder / "ca.key").chmod(0o640)
    with pytest.raises(RefusedError, match=r"mode 0640: others can use this key .*Run `chmod 600 /"):
        Authority(ca.folder)


def test_a_folder_that_others_can_write_in_is_refused(ca):
    ca.folder.chmod(0o777)
    with pytest.raises(RefusedError, match="mode 0777: others can write in it"):
        Authority(ca.folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a file away")
def test_a_key_of_somebody_else_is_refused(ca):
    os.chown(ca.folder / "ca.key", 12345, -1)
    with pytest.raises(RefusedError, match="belongs to uid 12345"):
        Authority(ca.folder)


def test_a_folder_without_an_authority_is_said_with_what_to_do(tmp_path):
    with pytest.raises(UsageError, match="Make it with `netprobe pki init --dir"):
        Authority(tmp_path / "nothing")
    with pytest.raises(UsageError, match=r"ca\.crt: is not there"):
        Authority(tmp_path)


@pytest.mark.parametrize("name", ["ca.key", "ca.crt", "crl.pem"])
def test_damaged_files_are_said(ca, tmp_path, name):
    ca.issue("hv1", Role.VSWITCH, HV1, NOW)
    (ca.folder / name).write_text("-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n")
    with pytest.raises(UsageError, match=name):
        Authority(ca.folder).everything()


@pytest.mark.parametrize(("name", "message"), [("ca.key", "not the key of"), ("crl.pem", "not this authority's")])
def test_files_of_two_authorities_are_not_mixed(ca, tmp_path, name, message):
    other = authority(tmp_path / "other", NOW)
    (ca.folder / name).write_bytes((other.folder / name).read_bytes())
    with pytest.raises(UsageError, match=message):
        Authority(ca.folder).everything()


# --- certificates of others ---


def test_mutated_certificates_are_identities_or_are_refused(ca):
    good = der(ca.issue("hv1", Role.VSWITCH, HV1, NOW).certificate)
    rng, refused = random.Random(1), 0
    for _ in range(1_500):
        octets = bytearray(good)
        for _ in range(rng.randrange(1, 4)):
            octets[rng.randrange(len(octets))] = rng.randrange(256)
        try:
            identity_of_untrusted(bytes(octets[: rng.choice([None, -1, 100])]))
        except RefusedError:
            refused += 1
    assert refused > 300


def test_the_authoritys_own_certificate_is_nobody(ca):
    with pytest.raises(RefusedError):
        identity_of_untrusted(der(ca.folder / "ca.crt"))
    with pytest.raises(RefusedError):
        identity_of_untrusted(b"")


# --- the command ---


def run(capsys, *arguments):
    code = main(["pki", *map(str, arguments)])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_command_from_init_to_revoke(capsys, tmp_path):
    folder = tmp_path / "pki"
    assert run(capsys, "init", "--dir", folder)[0] == 0
    code, out, _ = run(
        capsys,
        "issue",
        "hv1",
        "--role",
        "vswitch",
        "--inject",
        "vm*@500",
        "--inject",
        "byp1",
        "--dir",
        folder,
        "--json",
    )
    issued = json.loads(out)
    assert code == 0
    assert issued["schema"] == 1
    assert issued["report"] == ["hv1/*"]
    assert issued["inject"] == [{"ports": "vm*", "pps": 500}, {"ports": "byp1", "pps": 1000}]
    assert issued["files"] == {
        "key": str(folder / "hv1.key"),
        "certificate": str(folder / "hv1.crt"),
        "ca": str(folder / "ca.crt"),
    }
    assert run(capsys, "issue", "c1", "--role", "collector", "--address", "10.1.0.1", "--dir", folder)[0] == 0
    code, out, _ = run(capsys, "list", "--dir", folder)
    assert code == 0
    assert "hv1/*" in out
    assert "vm*@500" in out
    code, out, _ = run(capsys, "revoke", "hv1", "--dir", folder, "--json")
    assert (code, [c["name"] for c in json.loads(out)["revoked"]]) == (0, ["hv1"])
    code, out, _ = run(capsys, "list", "--dir", folder, "--json")
    by_name = {c["name"]: c for c in json.loads(out)["certificates"]}
    assert by_name["hv1"]["revoked"].endswith("+00:00")
    assert by_name["c1"]["revoked"] is None
    assert by_name["hv1"]["serial"] == issued["serial"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["issue", "hv1", "--role", "vswich"], "Did you mean 'vswitch'?"),
        (["issue", "hv1"], "--role"),
        (["issue", "hv1", "--role", "vswitch", "--inject", "vm*@0"], "--inject"),
        (["issue", "hv1", "--role", "vswitch", "--report", "a b"], "--report"),
        (["issue", "a/b", "--role", "vswitch"], "cannot be used"),
        (["revoke", "hv7"], "unknown certificate 'hv7'"),
    ],
)
def test_the_command_says_what_is_wrong_and_exits_with_2(capsys, tmp_path, arguments, said):
    run(capsys, "init", "--dir", tmp_path / "pki")
    code, out, err = run(capsys, *arguments, "--dir", tmp_path / "pki")
    assert (code, out) == (2, "")
    assert said in err
