"""`netprobe`: arguments, exit codes and nothing else.

Nothing heavy is imported here (numpy, trio, duckdb, rich, scapy): `netprobe --help` starts in a blink. Each command's
function lives in a module of its own, imported when it is called. Exit codes: docs/json.md.
"""

import argparse
import importlib
import io
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from netprobe import __version__
from netprobe.errors import NetprobeError, UsageError

EXIT_NOT_READY = 3
EXIT_FAULT = 5
EXIT_INTERRUPTED = 130
Command = Callable[[argparse.Namespace], int]


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are netprobe's own: they say what to do and exit with 2."""

    def error(self, message: str) -> "None":  # type: ignore[override]
        """Raise instead of exiting, so that one place prints errors."""
        raise UsageError(self.prog, message, advice=f"see `{self.prog} --help`")


def _run(module: str, function: str = "run") -> Command:
    """A command that imports its module only when it is called."""

    def call(args: argparse.Namespace) -> int:
        command: Command = getattr(importlib.import_module(f"netprobe.cli.{module}"), function)
        return command(args)

    return call


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout (docs/json.md)")


def _result(parser: argparse.ArgumentParser) -> None:
    _common(parser)
    parser.add_argument("--store", metavar="FILE", help="DuckDB file (default /var/lib/netprobe/netprobe.duckdb)")
    parser.add_argument("--no-store", action="store_true", help="keep the result nowhere")
    parser.add_argument(
        "--compare", action="store_true", help="name the segments that differ from the last stored result of this path"
    )
    parser.add_argument("--max-loss", metavar="SHARE", help="exit 1 when more probes are lost, such as 1%%")
    parser.add_argument(
        "--allow-change",
        action="store_true",
        help="allow what changes the cloud's own configuration: mirrors of vhost-user ports (docs/backends.md)",
    )
    parser.add_argument(
        "--vring",
        default="auto",
        metavar="HOW",
        help="look at vhost-user ports by uprobe or by mirror (default auto: uprobes where the host allows them)",
    )
    _governor(parser)
    _influx(parser)


def _governor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--governor",
        choices=("on", "off"),
        help="back off when the host is loaded (default: as the plan says, on; docs/harm.md)",
    )


def _influx(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--influx", metavar="URL", help="send readings to InfluxDB (docs/metrics.md)")
    parser.add_argument("--influx-bucket", metavar="NAME", help="bucket, or database/policy (default: netprobe)")
    parser.add_argument("--influx-org", metavar="NAME", help="organisation; InfluxDB 2 asks for one")
    parser.add_argument(
        "--influx-token-file", metavar="FILE", help="file with the token (default: $NETPROBE_INFLUX_TOKEN)"
    )
    parser.add_argument("--influx-ca", metavar="FILE", help="certificates that the server's must descend from")
    parser.add_argument("--influx-spool", metavar="DIR", help="where readings wait (default: /var/lib/netprobe/influx)")


def _metrics(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--metrics", metavar="ADDR:PORT", help="serve /metrics there for Prometheus (docs/metrics.md)")
    parser.add_argument("--metrics-token-file", metavar="FILE", help="token that /metrics asks for")


def _add_lab(commands: "argparse._SubParsersAction[Parser]") -> None:
    lab = commands.add_parser("lab", help="a small cloud on this machine, for trials, tests and demos")
    parts = lab.add_subparsers(dest="lab_command", metavar="COMMAND", required=True)
    up = parts.add_parser("up", help="bring the lab up (repairs a broken one)")
    up.add_argument("name", nargs="?", default="single", help="single (default), vm, dpdk, ovs-kernel, bridge, pair")
    up.add_argument("--config", metavar="TOML", help="guests and security groups of your own")
    down = parts.add_parser("down", help="take it down; cleans up after a crash too")
    status = parts.add_parser("status", help="hosts, guests, points, segments, faults")
    inside = parts.add_parser("exec", help="run a command in the lab's own machine (ovs-kernel)")
    inside.add_argument("--file", action="append", default=[], metavar="FILE", help="have it there too (repeatable)")
    inside.add_argument("words", nargs=argparse.REMAINDER, metavar="COMMAND", help="such as netprobe verify lab.toml")
    inside.set_defaults(call=_run("lab", "execute"))
    move = parts.add_parser("move", help="move a running guest to another hypervisor, as a live migration does")
    move.add_argument("guest", help="its name")
    move.add_argument("host", help="the hypervisor that it shall be on")
    fault = parts.add_parser("fault", help="put a known fault into a segment")
    faults = fault.add_subparsers(dest="fault_command", metavar="COMMAND", required=True)
    put = faults.add_parser("set", help="splice a relay with a truth log into a segment")
    put.add_argument("segment", help="as `lab status` prints it, such as vm1.backend..vm2.backend")
    put.add_argument("--delay", default="0us", help="added to every frame, such as 300us")
    put.add_argument("--jitter", default="0us", help="added at random, such as 20us")
    for name in ("loss", "duplicate", "reorder"):
        put.add_argument(f"--{name}", default="0%", help="share of frames, such as 2%%")
    put.add_argument("--share", default="100%", help="share of the marked probes that is delayed")
    put.add_argument("--seed", type=int, default=1, help="of every random decision")
    put.add_argument("--points", action="store_true", help="show the relay as a segment of its own")
    clear = faults.add_parser("clear", help="take the relay out again")
    clear.add_argument("segment", nargs="?", help="default: all")
    for parser, function in (
        (up, "up"),
        (down, "down"),
        (status, "status"),
        (move, "move"),
        (put, "fault_set"),
        (clear, "fault_clear"),
    ):
        _common(parser)
        parser.set_defaults(call=_run("lab", function))


def _add_trace(commands: "argparse._SubParsersAction[Parser]") -> None:
    trace = commands.add_parser("trace", help="probe one path and say where probes go, segment by segment")
    trace.add_argument("src", metavar="SRC", help="guest: name, IP, MAC or port UUID")
    trace.add_argument("dst", metavar="DST", help="guest: name, IP, MAC or port UUID")
    trace.add_argument("--vantage", default="guest", help="guest, bypass or vswitch")
    trace.add_argument("--proto", default="udp", help="udp (STAMP), raw-udp, icmp or tcp (SYN)")
    trace.add_argument("--family", type=int, default=4, choices=(4, 6), help="IP version")
    trace.add_argument("--dport", type=int, help="destination port")
    trace.add_argument("--sport", type=int, help="source port (default: one that nobody uses)")
    trace.add_argument("--flow", help="same or new-per-probe (default: same, but for tcp)")
    trace.add_argument("--size", type=int, help="frame size in bytes, without FCS (default: the smallest)")
    trace.add_argument("--class-mark", default="3", help="DSCP of the probes, or none")
    trace.add_argument("--ttl", type=int, default=64, help="TTL or hop limit")
    trace.add_argument("--count", type=int, help="probes (default: 100; 20 a flow, 4 a size and run with --mtu)")
    trace.add_argument("--rate", type=int, default=100, help="probes per second, of all flows or sizes together")
    trace.add_argument("--flows", type=int, metavar="N", help="N source ports, so that every ECMP or bond leg is tried")
    trace.add_argument("--mtu", action="store_true", help="find the sizes that the path swallows, to the byte")
    trace.add_argument("--schedule", default="periodic", help="periodic or poisson")
    trace.add_argument("--seed", type=int, default=1, help="of the schedule")
    trace.add_argument("--tmax", default="1s", help="waiting time after which a probe counts as lost")
    _result(trace)
    trace.set_defaults(call=_run("trace"))


def _add_watch_change(verify: Parser) -> None:
    verify.add_argument(
        "--watch-change", metavar="COMMAND", help="probe while COMMAND changes the rules: how long until they hold?"
    )
    verify.add_argument("--watch-rule", metavar="ID", help="the rule to watch (default: all that allow something)")
    verify.add_argument(
        "--watch-rate", type=int, default=1000, metavar="PPS", help="packets of existing flows per second, up to 10000"
    )
    verify.add_argument(
        "--watch-connections", type=int, default=200, metavar="CPS", help="new connections per second, up to 1000"
    )
    verify.add_argument("--watch-before", default="1s", metavar="TIME", help="from the first packet to COMMAND")
    verify.add_argument(
        "--watch-after", default="3s", metavar="TIME", help="end when nothing had the old verdict for so long"
    )


def _add_verify(commands: "argparse._SubParsersAction[Parser]") -> None:
    verify = commands.add_parser("verify", help="prove that a security policy is enforced (docs/policy.md)")
    verify.add_argument("policy", nargs="?", metavar="POLICY", help="TOML file")
    verify.add_argument("--neutron", metavar="DIR", help="groups, rules and ports, as openstack prints them")
    verify.add_argument("--ovn", metavar="REMOTE", help="OVN's northbound database: unix:/run/ovn/ovnnb_db.sock")
    verify.add_argument(
        "--vantage", default="tap", help="tap (as if the guest had sent it; the default), vswitch (packet-out) or guest"
    )
    verify.add_argument("--rate", type=int, default=2000, metavar="PPS", help="packets per second, all hosts together")
    verify.add_argument("--tmax", default="200ms", help="waiting time after which a packet counts as missed")
    verify.add_argument(
        "--alpha", type=float, default=1e-3, help="probability that anything at all is called dropped that passes"
    )
    verify.add_argument("--rounds", type=int, default=12, metavar="N", help="tries of a packet, at the most")
    verify.add_argument("--seed", type=int, default=1, help="of the order in which packets are sent")
    verify.add_argument(
        "--prove-rules",
        type=int,
        default=3,
        metavar="N",
        help="findings whose rule is proved by its own counter, the worst first; up to 6 s each (default: %(default)s)",
    )
    verify.add_argument("--plan", action="store_true", help="say what would be sent, and send nothing")
    verify.add_argument("--explain", type=int, metavar="N", help="show the evidence of finding N, hop by hop")
    _add_watch_change(verify)
    verify.add_argument("--store", metavar="FILE", help="DuckDB file (default /var/lib/netprobe/netprobe.duckdb)")
    verify.add_argument("--no-store", action="store_true", help="keep the result nowhere")
    _influx(verify)
    _common(verify)
    verify.set_defaults(call=_run("verify"))


def _add_watch(commands: "argparse._SubParsersAction[Parser]") -> None:
    watch = commands.add_parser("watch", help="run a plan for good and tell when a path changes (docs/watch.md)")
    watch.add_argument("plan", metavar="PLAN", help="TOML file")
    watch.add_argument("--windows", type=int, metavar="N", help="end after N windows (default: never)")
    watch.add_argument("--window", metavar="TIME", help="length of a window, such as 10s (default: the plan's)")
    watch.add_argument("--json", action="store_true", help="JSON Lines on stdout: windows and changes (docs/watch.md)")
    watch.add_argument("--store", metavar="FILE", help="DuckDB file (default /var/lib/netprobe/netprobe.duckdb)")
    watch.add_argument("--no-store", action="store_true", help="keep the windows' results nowhere")
    _influx(watch)
    _metrics(watch)
    watch.set_defaults(call=_run("watch"))


def _add_pki(commands: "argparse._SubParsersAction[Parser]") -> None:
    pki = commands.add_parser("pki", help="certificates of agents, operators and collectors (docs/trust.md)")
    parts = pki.add_subparsers(dest="pki_command", metavar="COMMAND", required=True)
    init = parts.add_parser("init", help="make an authority of netprobe's own")
    init.add_argument("--days", type=int, default=3650, help="how long it is valid")
    issue = parts.add_parser("issue", help="make a key and a certificate")
    issue.add_argument("name", metavar="NAME", help="of the host, guest, bypass NIC, operator or collector")
    issue.add_argument("--role", required=True, help="vswitch, bypass, guest, operator or collector")
    issue.add_argument(
        "--report",
        metavar="GLOB",
        action="append",
        help="places that it may report, as <host>/<point>; may be repeated (default: its own)",
    )
    issue.add_argument(
        "--inject",
        metavar="GLOB[@PPS]",
        action="append",
        default=[],
        help="ports on which it may inject, and packets/s of all that it sends there (default 1000); may be repeated",
    )
    issue.add_argument("--days", type=int, default=365, help="how long it is valid")
    issue.add_argument(
        "--address", metavar="IP|NAME", action="append", default=[], help="under which a collector is dialled"
    )
    issue.add_argument("--out", metavar="DIR", help="where to write key and certificate (default: --dir)")
    listing = parts.add_parser("list", help="what was issued: serial, name, role, grants, expiry, revoked or not")
    revoke = parts.add_parser("revoke", help="revoke a certificate")
    revoke.add_argument("target", metavar="NAME|SERIAL", help="all valid ones of a name, or one")
    for parser, function in ((init, "init"), (issue, "issue"), (listing, "everything"), (revoke, "revoke")):
        parser.add_argument("--dir", default="/etc/netprobe/pki", help="the authority's folder")
        _common(parser)
        parser.set_defaults(call=_run("pki", function))


def _add_agent(commands: "argparse._SubParsersAction[Parser]") -> None:
    agent = commands.add_parser("agent", help="the programs that are deployed", add_help=False)
    agent.add_argument("rest", nargs=argparse.REMAINDER, help="guest, bypass or vswitch, and what they take (--help)")
    agent.set_defaults(call=_run("agent"))


def _add_serve(commands: "argparse._SubParsersAction[Parser]") -> None:
    serve = commands.add_parser(
        "serve", help="the collector (docs/deployment.md), the live page (--web, docs/live-page.md), or both"
    )
    serve.add_argument("--listen", metavar="ADDR:PORT", help="default: 127.0.0.1:8620; with --web alone: nowhere")
    serve.add_argument("--name", default="collector", help="as in its certificate (default: %(default)s)")
    serve.add_argument("--pki", default="/etc/netprobe/pki", metavar="DIR", help="ca.crt, crl.pem, NAME.crt, NAME.key")
    serve.add_argument("--config", metavar="TOML", help="hosts and OVN's databases (default: what a lab has left)")
    serve.add_argument(
        "--dir", default="/var/lib/netprobe/collector", help="where runs are kept (default: %(default)s)"
    )
    serve.add_argument("--store", metavar="FILE", help="DuckDB file (default /var/lib/netprobe/netprobe.duckdb)")
    serve.add_argument("--no-store", action="store_true", help="keep results in --dir only")
    _web(serve)
    _influx(serve)
    _metrics(serve)
    serve.set_defaults(call=_run("serve"))


def _web(serve: argparse.ArgumentParser) -> None:
    serve.add_argument(
        "--web",
        nargs="?",
        const="127.0.0.1:8630",
        metavar="ADDR:PORT",
        help="a page that shows what is in the store; without --listen nothing else is served (default: %(const)s)",
    )
    serve.add_argument("--web-token", metavar="FILE", help="what whoever looks must know (or $NETPROBE_WEB_TOKEN)")
    serve.add_argument("--web-cert", metavar="FILE", help="certificate of the page, for HTTPS")
    serve.add_argument("--web-key", metavar="FILE", help="its key")


def _remote(run: argparse.ArgumentParser) -> None:
    run.add_argument("--collector", metavar="ADDR:PORT", help="let a collector and its agents run it")
    run.add_argument("--operator", default="operator", metavar="NAME", help="as in your certificate, with --collector")
    run.add_argument("--pki", default="/etc/netprobe/pki", metavar="DIR", help="ca.crt, NAME.crt, NAME.key")


def _add_bench(commands: "argparse._SubParsersAction[Parser]") -> None:
    bench = commands.add_parser("bench", help="measure what netprobe itself does to this machine")
    parts = bench.add_subparsers(dest="bench_command", metavar="COMMAND", required=True)
    harm = parts.add_parser("harm", help="tenants' TCP latency and throughput, with and without probing (docs/harm.md)")
    harm.add_argument("src", nargs="?", metavar="SRC", help="guest whose tenant asks, and that probes (default: vm1)")
    harm.add_argument("dst", nargs="?", metavar="DST", help="guest whose tenant answers (default: vm3)")
    harm.add_argument("--rate", type=int, default=1000, metavar="PPS", help="probes per second (default: %(default)s)")
    harm.add_argument("--slices", type=int, default=20, metavar="N", help="with probing, and twice as many without")
    harm.add_argument("--slice", default="1s", metavar="TIME", help="length of one (default: %(default)s)")
    harm.add_argument("--limit", default="5%", metavar="SHARE", help="exit 1 beyond it, 4 when nobody can say")
    harm.add_argument("--vantage", default="guest", help="guest, bypass or vswitch")
    harm.add_argument("--port", type=int, default=5201, help="TCP port of the tenant's server (default: %(default)s)")
    harm.add_argument("--tenant-cpus", default="", metavar="N,...", help="processors for the tenants (default: any)")
    harm.add_argument("--governor", choices=("on", "off"), default="on", help="whether probing backs off under load")
    harm.add_argument("--seed", type=int, default=1, help="of the probes' schedule")
    _common(harm)
    harm.set_defaults(call=_run("bench", "harm"))


def build_parser() -> Parser:
    """The whole command line."""
    parser = Parser(prog="netprobe", description="Active probing of the virtual data path, segment by segment.")
    parser.add_argument("--version", action="version", version=f"netprobe {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_lab(commands)
    _add_trace(commands)
    run = commands.add_parser("run", help="run a plan (docs/plans.md)")
    run.add_argument("plan", metavar="PLAN", help="TOML file")
    run.add_argument(
        "--keep-hops", action="store_true", help="store the hop records of a stream too, not its windows alone"
    )
    _remote(run)
    _result(run)
    run.set_defaults(call=_run("plan"))
    _add_verify(commands)
    _add_watch(commands)
    report = commands.add_parser("report", help="a stored result again: tables, JSON, CSV, or one HTML file")
    report.add_argument("--last", action="store_true", help="the newest one (the default)")
    report.add_argument("--run", metavar="ID", help="this one")
    report.add_argument("--html", metavar="FILE", help="write it as one self-contained file; - for stdout")
    report.add_argument("--csv", action="store_true", help="a line a segment, or a finding")
    report.add_argument("--store", metavar="FILE", help="DuckDB file (default /var/lib/netprobe/netprobe.duckdb)")
    _common(report)
    report.set_defaults(call=_run("report"))
    doctor = commands.add_parser("doctor", help="is this host ready, and what is missing?")
    _common(doctor)
    doctor.set_defaults(call=_run("doctor"))
    clean = commands.add_parser("clean", help="remove what a killed netprobe may have left on this host")
    _common(clean)
    clean.set_defaults(call=_run("clean"))
    demo = commands.add_parser("demo", help="the whole story on a lab of its own")
    _common(demo)
    demo.set_defaults(call=_run("demo"))
    _add_bench(commands)
    _add_pki(commands)
    _add_serve(commands)
    _add_agent(commands)
    return parser


def _report_fault(error: BaseException) -> int:
    """A fault of netprobe itself: the traceback goes to a file, the terminal gets where."""
    with tempfile.NamedTemporaryFile("w", prefix="netprobe-fault-", suffix=".txt", delete=False) as file:
        traceback.print_exception(error, file=file)
    print(f"netprobe: internal fault: {error!r}. The details are in {file.name}; please report them.", file=sys.stderr)
    return EXIT_FAULT


def _expected(error: BaseException) -> NetprobeError | None:
    """The error to report out of what a nursery raised, if it is one that netprobe raises on purpose."""
    if isinstance(error, NetprobeError):
        return error
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            found = _expected(inner)
            if found:
                return found
    return None


def _is_interrupt(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return any(_is_interrupt(inner) for inner in error.exceptions)
    return isinstance(error, KeyboardInterrupt)


def _mend_streams() -> None:
    """Closed streams become /dev/null, and what a terminal's encoding lacks becomes "?": neither is worth a result."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115  for the rest of the process
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _forget_stdout() -> None:
    """Nobody reads any more (`| head`): the interpreter's own flush at exit must not complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _terminate(*_: object) -> None:
    raise KeyboardInterrupt


def _notes(error: BaseException) -> list[str]:
    """What a command changed and could not take back (service.run), also out of a nursery."""
    inner = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    return [*getattr(error, "__notes__", ()), *(note for each in inner for note in _notes(each))]


def _code_of(error: BaseException) -> int:
    """Say what went wrong, and with which exit code."""
    for note in _notes(error):
        print(f"netprobe: {note}.", file=sys.stderr)
    if _is_interrupt(error):
        rest = "the rest of what" if _notes(error) else "what"
        print(f"netprobe: interrupted; {rest} it made has been removed.", file=sys.stderr)
        return EXIT_INTERRUPTED
    expected = _expected(error)
    if expected is not None:
        print(f"netprobe: {expected}", file=sys.stderr)
        return expected.exit_code
    if isinstance(error, PermissionError):
        print(f"netprobe: permission denied: {error}. Run it as root.", file=sys.stderr)
        return EXIT_NOT_READY
    return _report_fault(error)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: without the program's name; default: the process's own.

    Returns:
        The exit code.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    _mend_streams()
    try:
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                signal.signal(number, _terminate)  # what a command made must be gone when it ends
        args = build_parser().parse_args(arguments)
        code: int = args.call(args)
        sys.stdout.flush()
    except SystemExit as error:  # argparse: --help, --version
        return int(error.code or 0)
    except BrokenPipeError:
        _forget_stdout()
        return 0
    except BaseException as error:  # noqa: BLE001  the last line of defence: never a bare traceback
        return _code_of(error)
    return code


if __name__ == "__main__":
    sys.exit(main())
