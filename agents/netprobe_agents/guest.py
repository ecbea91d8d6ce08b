"""The guest agent's command line: `netprobe agent guest`, `python -m netprobe_agents.guest`, or the zipapp.

Arguments and exit codes, no logic; trio is imported only once the arguments are good. serve.py is the agent,
sender.py the standard STAMP sender.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from netprobe.errors import NetprobeError, UsageError

if TYPE_CHECKING:
    import threading

    from netprobe_agents.sender import Measurement, SenderConfig

MAX_COUNT = 1_000_000
MAX_RATE_PPS = 20_000
MAX_SIZE_BYTES = 65_000
EXIT_NO = 1
EXIT_FAULT = 5


def _serve_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="netprobe agent guest",
        description="Reflect STAMP packets and carry out a controller's orders. "
        "'netprobe agent guest send --help' is a STAMP sender for any reflector.",
    )
    parser.add_argument("--control", type=Path, metavar="PATH", help="unix socket for one controller at a time")
    parser.add_argument(
        "--control-port", type=Path, metavar="DEVICE", help="virtio-serial port instead, in a virtual machine"
    )
    parser.add_argument("--device", default="eth0", help="interface that the orders are about (default: %(default)s)")
    parser.add_argument(
        "--reflect-port",
        type=int,
        default=862,
        metavar="PORT",
        help="UDP port of the reflector, 0: none (default: 862)",
    )
    parser.add_argument("--stateless", action="store_true", help="copy sequence numbers instead of counting answers")
    parser.add_argument("--key-file", type=Path, metavar="PATH", help="authenticated mode with this file's secret")
    parser.add_argument("--ready-fd", type=int, metavar="N", help="say 'ready' there instead of on stdout")
    return parser


def _send_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="netprobe agent guest send", description="Measure to any STAMP reflector (RFC 8762)."
    )
    parser.add_argument("--to", required=True, metavar="ADDR", help="IPv4 or IPv6 address of the reflector")
    parser.add_argument("--port", type=int, default=862, help="its UDP port (default: 862)")
    parser.add_argument("--count", type=int, default=100, help="questions (default: 100)")
    parser.add_argument("--rate", type=float, default=100.0, metavar="PPS", help="questions a second (default: 100)")
    parser.add_argument(
        "--size", type=int, default=0, metavar="BYTES", help="UDP payload, padded (default: the base packet)"
    )
    parser.add_argument(
        "--wait", type=float, default=1.0, metavar="S", help="Tmax after the last question (default: 1)"
    )
    parser.add_argument("--ptp", action="store_true", help="PTPv2 truncated timestamps instead of NTP")
    parser.add_argument("--auth-key-file", type=Path, metavar="PATH", help="authenticated mode with this file's secret")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    return parser


def _check_range(option: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise UsageError(option, f"{value} is out of range", allowed=f"{low} to {high}")


def _serve(arguments: argparse.Namespace) -> int:
    _check_range("--reflect-port", arguments.reflect_port, 0, 65_535)
    if arguments.control is None and arguments.control_port is None and not arguments.reflect_port:
        raise UsageError("--reflect-port", "0, and no --control: nothing to do", advice="give one of them")
    import trio  # noqa: PLC0415  --help need not wait for it

    from netprobe.inject.pacer import SWITCH_INTERVAL_S  # noqa: PLC0415
    from netprobe_agents.serve import ServeConfig, serve  # noqa: PLC0415

    config = ServeConfig(
        control=arguments.control,
        control_port=arguments.control_port,
        device=arguments.device,
        reflect_port=arguments.reflect_port,
        stateless=arguments.stateless,
        key_file=arguments.key_file,
        ready_fd=arguments.ready_fd,
    )
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    trio.run(serve, config)
    return 0


async def _measure_until_signal(config: "SenderConfig", stop: "threading.Event") -> "Measurement":
    """A signal ends the questions; what was asked until then is still counted and shown."""
    import signal  # noqa: PLC0415

    import trio  # noqa: PLC0415

    from netprobe_agents.sender import measure  # noqa: PLC0415

    async def watch() -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            await anext(signals)
            stop.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        measurement = await measure(config, stop)
        nursery.cancel_scope.cancel()
    return measurement


def _send(arguments: argparse.Namespace) -> int:
    try:
        ip_address(arguments.to.partition("%")[0])
    except ValueError as error:
        raise UsageError("--to", f"{arguments.to!r} is no IP address") from error
    _check_range("--port", arguments.port, 1, 65_535)
    _check_range("--count", arguments.count, 1, MAX_COUNT)
    _check_range("--rate", arguments.rate, 0.001, MAX_RATE_PPS)
    _check_range("--size", arguments.size, 0, MAX_SIZE_BYTES)
    _check_range("--wait", arguments.wait, 0, 3600)
    import threading  # noqa: PLC0415

    import trio  # noqa: PLC0415  --help need not wait for it

    from netprobe.wire.stamp import TimestampFormat  # noqa: PLC0415
    from netprobe_agents.sender import SenderConfig  # noqa: PLC0415
    from netprobe_agents.serve import read_key  # noqa: PLC0415

    config = SenderConfig(
        to=arguments.to,
        port=arguments.port,
        count=arguments.count,
        rate_pps=arguments.rate,
        timestamp_format=TimestampFormat.PTP if arguments.ptp else TimestampFormat.NTP,
        key=None if arguments.auth_key_file is None else read_key(arguments.auth_key_file),
        size_bytes=arguments.size,
        tmax_s=arguments.wait,
    )
    measurement = trio.run(_measure_until_signal, config, threading.Event())
    print(_as_json(config, measurement) if arguments.json else _as_text(config, measurement))
    return 0 if measurement.received else EXIT_NO


def _as_json(config: "SenderConfig", measurement: "Measurement") -> str:
    from dataclasses import asdict  # noqa: PLC0415

    document = {
        "schema": 1,
        "to": config.to,
        "port": config.port,
        "tmax_ms": config.tmax_s * 1000,
        **asdict(measurement),
    }
    for name in ("forward", "backward"):
        if document[name] is not None:
            document[name]["clock_dependent"] = True
    return json.dumps(document)


def _as_text(config: "SenderConfig", measurement: "Measurement") -> str:
    m = measurement
    rest = f"({m.unsent} unsent, {m.duplicated} duplicated, {m.bad} bad)"
    lines = [f"{config.to} port {config.port}: {m.sent} sent, {m.received} received, {m.lost} lost {rest}"]
    if m.forward_lost is not None:
        lines.append(f"of these {m.forward_lost} lost on the way there, {m.return_lost} on the way back")
    trust = "unknown" if m.clock_error_ns is None else f"+-{m.clock_error_ns / 1e3:.0f} us"
    for name, delays, note in (
        ("round trip", m.round_trip, ""),
        ("way there", m.forward, f"  depends on the clocks ({trust})"),
        ("way back", m.backward, f"  depends on the clocks ({trust})"),
    ):
        if delays is not None:
            figures = "  ".join(
                f"{label} {value_ns / 1e3:.1f}"
                for label, value_ns in (("min", delays.min_ns), ("p50", delays.p50_ns), ("max", delays.max_ns))
            )
            lines.append(f"{name:10s}  {figures} us{note}")
    return "\n".join(lines)


def _report_fault(error: BaseException) -> None:
    """Never a bare traceback: write it down and say where."""
    import tempfile  # noqa: PLC0415
    import traceback  # noqa: PLC0415

    with tempfile.NamedTemporaryFile(
        "w", prefix="netprobe-agent-fault-", suffix=".txt", delete=False, encoding="utf-8"
    ) as file:
        traceback.print_exception(error, file=file)
    print(f"netprobe agent guest: a fault of netprobe itself: {error!r}; written to {file.name}", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the guest agent, or its sender.

    Args:
        argv: arguments without the program's name; None takes the process's own.

    Returns:
        The exit code (docs/guest-agent.md).
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if words[:1] == ["send"]:
            return _send(_send_parser().parse_args(words[1:]))
        return _serve(_serve_parser().parse_args(words[1:] if words[:1] == ["serve"] else words))
    except NetprobeError as error:
        print(f"netprobe agent guest: {error}", file=sys.stderr)
        return error.exit_code
    except BaseExceptionGroup as group:  # a nursery wraps even a single one
        expected = [error for error in group.exceptions if isinstance(error, NetprobeError)]
        if len(expected) == len(group.exceptions):
            print(f"netprobe agent guest: {expected[0]}", file=sys.stderr)
            return expected[0].exit_code
        _report_fault(group)
        return EXIT_FAULT
    except Exception as error:  # noqa: BLE001  the last line: exit code 5, never a bare traceback
        _report_fault(error)
        return EXIT_FAULT


if __name__ == "__main__":
    sys.exit(main())
