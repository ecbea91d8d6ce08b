"""`netprobe pki`: certificates of agents, operators and collectors."""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from netprobe.cli.output import print_json, say
from netprobe.host import pki
from netprobe.host.certificates import datetime_of
from netprobe.host.pki import Authority, Issued
from netprobe.plan.grants import Grants, default_report, parse_glob, parse_inject, parse_role
from netprobe.show.tables import console

FINE = 0


def init(args: argparse.Namespace) -> int:
    """Make an authority."""
    folder = Path(args.dir)
    certificate = pki.init(folder, time.time_ns(), days=args.days)
    if args.json:
        print_json({"dir": str(folder), "ca": str(certificate), "crl": str(folder / "crl.pem")})
        return FINE
    print(f"the authority is in {folder}; its key, {folder / 'ca.key'}, never leaves it")
    print(f"every agent, operator and collector needs {certificate}; a collector {folder / 'crl.pem'}, too")
    return FINE


def issue(args: argparse.Namespace) -> int:
    """Make a key and a certificate."""
    role = parse_role(args.role, "--role")
    report = tuple(parse_glob(glob, "--report") for glob in args.report or default_report(args.name, role))
    grants = Grants(report, tuple(parse_inject(text, "--inject") for text in args.inject))
    authority = Authority(Path(args.dir))
    files = authority.issue(
        args.name,
        role,
        grants,
        time.time_ns(),
        days=args.days,
        addresses=args.address,
        out=Path(args.out) if args.out else None,
    )
    ca = authority.folder / "ca.crt"
    if args.json:
        paths = {"key": str(files.key), "certificate": str(files.certificate), "ca": str(ca)}
        print_json({**files.issued.identity.to_json(), "files": paths})
        return FINE
    console().print(_table([files.issued], time.time_ns()))
    print(f"take {files.key}, {files.certificate} and {ca} to where {args.name} runs")
    return FINE


def everything(args: argparse.Namespace) -> int:
    """Say what was issued."""
    now_ns = time.time_ns()
    issued = Authority(Path(args.dir)).everything()
    if args.json:
        print_json({"certificates": [one.to_json(now_ns) for one in issued]})
    elif issued:
        console().print(_table(issued, now_ns))
    else:
        print("nothing was issued so far; `netprobe pki issue` does")
    return FINE


def revoke(args: argparse.Namespace) -> int:
    """Revoke certificates."""
    now_ns = time.time_ns()
    folder = Path(args.dir)
    revoked = Authority(folder).revoke(args.target, now_ns)
    if args.json:
        print_json({"revoked": [one.to_json(now_ns) for one in revoked], "crl": str(folder / "crl.pem")})
        return FINE
    for one in revoked:
        print(f"revoked: {one.identity.name}, serial {one.identity.serial:x}")
    say(f"netprobe pki: it counts once every collector (and agent) that has a list of its own has {folder / 'crl.pem'}")
    return FINE


def _table(issued: Sequence[Issued], now_ns: int) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("name", "role", "reports", "injects", "until", "", "serial"):
        table.add_column(name, overflow="fold")
    for one in issued:
        identity = one.identity
        word, style = ("valid", "green")
        if one.revoked_ns is not None:
            word, style = ("revoked", "red")
        elif identity.is_expired(now_ns):
            word, style = ("expired", "yellow")
        table.add_row(
            identity.name,
            identity.role.value,
            ", ".join(identity.grants.report) or "-",
            ", ".join(f"{grant.glob}@{grant.pps}" for grant in identity.grants.inject) or "-",
            f"{datetime_of(identity.not_after_ns):%Y-%m-%d}",
            Text(word, style=style),
            f"{identity.serial:x}",
        )
    return table
