"""`netprobe serve --web`: where the live page listens, who may look, and the page alone where there is no collector."""

import argparse
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import trio

from netprobe.cli.output import say
from netprobe.errors import UsageError
from netprobe.host.signals import until_signalled
from netprobe.service.web_page import WebConfig, serve_page
from netprobe.show.web.guard import is_loopback
from netprobe.store.duckdb_file import DEFAULT_PATH

FINE = 0
TOKEN_VARIABLE = "NETPROBE_WEB_TOKEN"  # noqa: S105  the variable's name


def place(text: str) -> tuple[str, int]:
    """Address and port of `--web`.

    Raises:
        UsageError: it is neither.
    """
    address, colon, port = text.rpartition(":")
    address = address.removeprefix("[").removesuffix("]")
    if not colon or not address or not port.isascii() or not port.isdigit() or not int(port) < 65_536:
        raise UsageError("--web", f"got {text!r}", allowed="ADDRESS:PORT, such as 127.0.0.1:8630 or [::1]:8630")
    return address, int(port)


def _token(args: argparse.Namespace) -> str:
    if not args.web_token:
        return os.environ.get(TOKEN_VARIABLE, "").strip()
    try:
        token = Path(args.web_token).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"--web-token {args.web_token}", f"cannot be read: {error}", advice="check the path"
        ) from error
    if not token:
        raise UsageError(f"--web-token {args.web_token}", "is empty", advice="`openssl rand -hex 24` makes a token")
    return token


def web_config(args: argparse.Namespace) -> WebConfig | None:
    """How the page is served, None where it is not asked for.

    Raises:
        UsageError: an option is wrong, or a file is not there.
    """
    if not args.web:
        for option in ("web_token", "web_cert", "web_key"):
            if getattr(args, option):
                raise UsageError(f"--{option.replace('_', '-')}", "is for the live page", advice="give --web too")
        return None
    if bool(args.web_cert) != bool(args.web_key):
        raise UsageError("--web-cert, --web-key", "one is missing", advice="give both, or none for HTTP")
    for name in (args.web_cert, args.web_key):
        if name and not Path(name).is_file():
            raise UsageError("--web-cert, --web-key", f"there is no file {name}", advice="check the path")
    return WebConfig(
        listen=place(args.web),
        token=_token(args),
        store=Path(args.store) if args.store else DEFAULT_PATH,
        certificate=Path(args.web_cert) if args.web_cert else None,
        key=Path(args.web_key) if args.web_key else None,
    )


def ready_of(config: WebConfig | None) -> Callable[[str], None]:
    """Tells where the page can be opened: on stdout, for programs too; and if its token goes in clear, that."""

    def ready(url: str) -> None:
        print(f"page on {url}", flush=True)
        if config and config.token and not config.certificate and not is_loopback(config.listen[0]):
            say("netprobe serve: the token crosses the network in clear: give --web-cert and --web-key, or tunnel")

    return ready


def run_viewer(args: argparse.Namespace) -> int:
    """The page alone, until SIGTERM or Ctrl-C: of what `watch`, `run` and `verify` write to the store.

    Raises:
        UsageError: an option is the collector's, or wrong.
    """
    for option in ("config", "metrics", "influx", "no_store"):
        if getattr(args, option, None):
            raise UsageError(f"--{option.replace('_', '-')}", "is the collector's", advice="give --listen too")
    config = web_config(args)
    assert config is not None
    trio.run(until_signalled, partial(serve_page, config, ready_of(config)))
    return FINE
