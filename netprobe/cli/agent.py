"""`netprobe agent guest|bypass|vswitch …`: hands over to the deployed programs; what they take, their `--help` says."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from netprobe.errors import UsageError

KINDS = ("guest", "bypass", "vswitch")
FINE = 0


def run(args: argparse.Namespace) -> int:
    """Start an agent in the foreground."""
    kind, *rest = args.rest or [""]
    if kind == "vswitch":
        return _vswitch(rest)
    if kind not in KINDS:
        raise UsageError(
            "netprobe agent", f"got {kind!r}", allowed=", ".join(KINDS), advice="try `netprobe agent guest --help`"
        )
    from netprobe_agents.guest import main  # noqa: PLC0415  it stands beside the command line, and imports trio

    # A bypass NIC is a guest's NIC without a guest: nobody probes it, so nothing reflects there.
    return main(["--reflect-port", "0", *rest] if kind == "bypass" else rest)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="netprobe agent vswitch",
        description="The agent of a host: looks at its points, injects through its vswitch and its guests' agents, and "
        "reports to a collector (docs/deployment.md).",
    )
    parser.add_argument("--collector", required=True, metavar="ADDR:PORT", help="where `netprobe serve` listens")
    parser.add_argument("--name", required=True, help="as in its certificate")
    parser.add_argument("--host", help="name of this host in the cloud (default: NAME)")
    parser.add_argument("--pki", default="/etc/netprobe/pki", metavar="DIR", help="ca.crt, NAME.crt, NAME.key")
    parser.add_argument("--ovs-rundir", default="/run/openvswitch", metavar="DIR", help='"" where there is no switch')
    parser.add_argument("--bridge", default="br-int", help="the integration bridge (default: %(default)s)")
    parser.add_argument("--zone", type=int, help="conntrack zone of all ports (default: each has its own, as in OVN)")
    parser.add_argument(
        "--allowlist", default="/etc/netprobe/allowlist.toml", metavar="FILE", help="what may be ordered"
    )
    parser.add_argument(
        "--guests", default="/run/netprobe/guests", metavar="DIR", help="control sockets of guests' agents, NAME.sock"
    )
    parser.add_argument("--spool", default="/var/lib/netprobe/spool", metavar="DIR", help="what is not delivered yet")
    parser.add_argument("--spool-limit", type=int, default=256 << 20, metavar="BYTES", help="default: 256 MiB")
    parser.add_argument("--exchange", metavar="ADDR:PORT", help="where other hosts' agents compare clocks with us")
    parser.add_argument(
        "--test-clock", default="", metavar="SPEC", help="tests only: offset=300ms,drift=50ppm,step=5s:20ms"
    )
    return parser


def _vswitch(rest: Sequence[str]) -> int:
    options = _parser().parse_args(rest)
    import trio  # noqa: PLC0415  --help need not wait for it

    from netprobe.cli.output import say  # noqa: PLC0415
    from netprobe.cli.serve import place  # noqa: PLC0415
    from netprobe.host.clock import HostClock  # noqa: PLC0415
    from netprobe.host.signals import until_signalled  # noqa: PLC0415
    from netprobe.host.tls import Credentials  # noqa: PLC0415
    from netprobe.model.topology import Host  # noqa: PLC0415
    from netprobe.service.agent_part import LocalHost  # noqa: PLC0415
    from netprobe.service.host_agent import AgentConfig, HostAgent  # noqa: PLC0415

    name = options.host or options.name
    host = Host(name, "", options.bridge, options.ovs_rundir, options.allowlist, options.zone)
    config = AgentConfig(
        name=options.name,
        role="vswitch",
        collector=place(options.collector, "--collector"),
        credentials=Credentials.in_folder(Path(options.pki), options.name),
        local=LocalHost(host, Path(options.guests), HostClock.parse(options.test_clock)),
        spool=Path(options.spool),
        spool_bytes=options.spool_limit,
        exchange=place(options.exchange, "--exchange") if options.exchange else None,
    )
    agent = HostAgent(config, lambda text: say(f"netprobe agent {options.name}: {text}"))
    print("ready", flush=True)
    trio.run(until_signalled, agent.run)
    return FINE
