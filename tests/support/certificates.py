"""An authority and certificates for tests, made at a given time."""

import time

from netprobe.host import pki
from netprobe.host.pki import Authority
from netprobe.host.tls import Credentials
from netprobe.plan.grants import Grants, Role, default_report

DAY_NS = 86_400 * 1_000_000_000


def authority(folder, now_ns=None):
    """A new authority in a folder that is made."""
    pki.init(folder, time.time_ns() if now_ns is None else now_ns)
    return Authority(folder)


def issue(ca, name, role, *, now_ns=None, days=30, grants=None, **more):
    """A certificate with the default grants of its role; the files that its holder needs."""
    role = Role(role)
    grants = Grants(default_report(name, role)) if grants is None else grants
    ca.issue(name, role, grants, time.time_ns() if now_ns is None else now_ns, days=days, **more)
    return Credentials.in_folder(ca.folder, name)
