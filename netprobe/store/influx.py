"""InfluxDB: lines of readings over its v2 write requests, which InfluxDB 1.8, 2, 3 and VictoriaMetrics take.

The only module that imports influxdb_client, and not before a writer is made. One blocking request at a time: what
waits meanwhile, and what is tried again, is service.sink's. Times are ns: InfluxDB 1.x takes "us" for ns, silently.
"""

import json
import re
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from netprobe.errors import HostNotReadyError

TIMEOUT_S = 10.0
_DROPPED = re.compile(r"dropped=(\d{1,9})")
_PARTIAL = "partial write"
_UNPARSED = "unable to parse '"
"""Before each line that InfluxDB 1 and 2 cannot read; behind it `': ` and why (models.ParsePointsWithPrecision)."""

TOO_LARGE = 413
REFUSED = frozenset({400, TOO_LARGE, 422})
"""Statuses after which the same lines would be refused again; all others pass, or somebody can mend them."""

MAX_TOLD = 200
MAX_QUOTES = 20  # in a line that is named; each makes one more text that may be the line


class Taking(Enum):
    """What became of lines."""

    TAKEN = "taken"
    REFUSED = "refused"  # some of them are wrong, or they are too many
    LATER = "later"  # the server is not there, or wants something else first


@dataclass(frozen=True, slots=True)
class InfluxTarget:
    """Where to write.

    Attributes:
        url: without the API's path; bucket, org: names.
        token: "" for none.
        ca_file: "" for the certificates that the machine trusts.
    """

    url: str
    bucket: str
    org: str = ""
    token: str = field(default="", repr=False)
    ca_file: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of lines.

    Attributes:
        why: in words, "" where all were taken.
        dropped: of lines that were taken otherwise, how many the database did not want.
        named: what may be lines that it named as those that it cannot read; who has the lines sees which are.
    """

    taking: Taking
    why: str = ""
    dropped: int = 0
    named: frozenset[bytes] = frozenset()


class InfluxWriter:
    """A connection to one server; `close` it."""

    def __init__(self, target: InfluxTarget, timeout_s: float = TIMEOUT_S) -> None:
        """Raises HostNotReadyError where the client cannot be set up: a file with certificates that is none."""
        from influxdb_client.client.influxdb_client import InfluxDBClient  # noqa: PLC0415  0.7 s for those who write
        from influxdb_client.client.write_api import SYNCHRONOUS  # noqa: PLC0415  likewise

        self._target = target
        try:
            self._client = InfluxDBClient(
                url=target.url,
                token=target.token or "none",  # the client sends a header either way; who asks for none ignores it
                org=target.org or "-",
                timeout=round(timeout_s * 1e3),
                enable_gzip=True,
                retries=False,
                ssl_ca_cert=target.ca_file or None,
            )
            self._api = self._client.write_api(write_options=SYNCHRONOUS)
        except (OSError, ValueError) as error:
            raise HostNotReadyError(
                f"InfluxDB at {target.url}", f"cannot be spoken to: {error}", advice="check the file of certificates"
            ) from error

    def write(self, lines: bytes) -> Answer:
        """Write lines; blocks for TIMEOUT_S at most, and never raises for what the network or the server does.

        Args:
            lines: of the line protocol, times in ns.
        """
        from influxdb_client.domain.write_precision import WritePrecision  # noqa: PLC0415  imported already
        from influxdb_client.rest import ApiException  # noqa: PLC0415  likewise
        from urllib3.exceptions import HTTPError  # noqa: PLC0415  likewise

        target = self._target
        precision: Any = WritePrecision.NS  # a str, which its own signature does not take
        try:
            self._api.write(target.bucket, target.org or "-", lines, write_precision=precision)
        except ApiException as error:
            return _answer_of(int(error.status or 0), _text_of(error.body) or str(error.reason))
        except (HTTPError, OSError, ValueError) as error:  # a host's name that is none is a ValueError
            return Answer(Taking.LATER, f"cannot be reached: {_short(str(error))}")
        return Answer(Taking.TAKEN)

    def close(self) -> None:
        """Close the connection."""
        # The client has types for some functions only.
        self._api.close()  # type: ignore[no-untyped-call]
        self._client.close()  # type: ignore[no-untyped-call]


def _answer_of(status: int, text: str) -> Answer:
    why = f"answers {status}: {_short(text)}"
    if status not in REFUSED:
        return Answer(Taking.LATER, why)
    words, told = _untrusted_error(text)
    if _PARTIAL in words:  # 400 of InfluxDB 1 and 3, 422 of InfluxDB 2
        found = _DROPPED.search(words)
        count = max(int(found[1]) if found else 0, words.count(_UNPARSED), len(told))
        return Answer(Taking.TAKEN, why, count if found or count else 1)
    if status != TOO_LARGE and text.lstrip().startswith("<"):
        # A page for people: no database said that of these lines, but a proxy or web server, of how it was asked.
        return Answer(Taking.LATER, why)
    return Answer(Taking.REFUSED, why, named=frozenset(told) | _unparsed(words))


def _untrusted_error(text: str) -> tuple[str, list[bytes]]:
    """What a server's answer says in words, and the lines that InfluxDB 3 names in it."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return text, []
    if not isinstance(document, dict):
        return text, []
    words = " ".join(str(document[key]) for key in ("error", "message") if key in document)
    data = document.get("data")
    rows = data if isinstance(data, list) else [data]
    lines = [row["original_line"] for row in rows if isinstance(row, dict) and "original_line" in row]
    return words or text, [_octets(str(line)) for line in lines]


def _unparsed(words: str) -> frozenset[bytes]:
    """Whatever may be a line that InfluxDB 1 or 2 names: from each opening quote to each closing one."""
    found = set()
    for piece in words.split(_UNPARSED)[1:]:
        parts = piece.split("': ")
        found |= {_octets("': ".join(parts[:n])) for n in range(1, min(len(parts), MAX_QUOTES))}
    return frozenset(found)


def _octets(text: str) -> bytes:
    """As UTF-8; half a surrogate pair, which JSON can name, is in no line of ours."""
    return text.encode(errors="replace")


def _text_of(body: object) -> str:
    return body.decode(errors="replace") if isinstance(body, bytes) else str(body or "")


def _short(text: str) -> str:
    """A server's words as they may stand in a log."""
    return "".join(c if c.isprintable() else " " for c in text[:MAX_TOLD]).strip()
