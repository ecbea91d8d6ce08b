"""Where readings go: the table [influx] of a plan or of a collector's configuration, and what options say. Pure.

The token is never in it: it comes from a file or from the environment (docs/metrics.md).
"""

from dataclasses import dataclass
from urllib.parse import urlsplit

from netprobe.errors import UsageError
from netprobe.plan.fields import Fields

DEFAULT_BUCKET = "netprobe"


@dataclass(frozen=True, slots=True)
class InfluxPlan:
    """A database that takes InfluxDB's v2 write requests.

    Attributes:
        url: such as http://influxdb:8086, without a path of the API.
        bucket: name; for InfluxDB 1.8 database/retention-policy.
        org: name or id; InfluxDB 2 alone asks for one.
        token_file: file with the token, "" for the environment's.
        ca_file: certificates that the server's must descend from, "" for those that the machine trusts.
    """

    url: str
    bucket: str = DEFAULT_BUCKET
    org: str = ""
    token_file: str = ""
    ca_file: str = ""


def checked_url(url: str, where: str) -> str:
    """The URL without a slash at its end.

    Raises:
        UsageError: it is no http or https URL, or has a password or a query in it.
    """
    allowed = "http://HOST:PORT or https://HOST:PORT"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UsageError(where, f"{url!r} is no URL: {error}", allowed=allowed) from error
    if "@" in parts.netloc:
        raise UsageError(
            where, "holds a name or a password", allowed=allowed, advice="others see it there: use a token file"
        )
    is_one_word = url.isprintable() and " " not in url
    if (
        not is_one_word
        or parts.scheme not in {"http", "https"}
        or not parts.hostname
        or port == 0
        or parts.query
        or parts.fragment
    ):
        raise UsageError(where, f"got {url!r}", allowed=allowed)
    return url.rstrip("/")


def influx_table(fields: Fields | None, where: str, *, has_token: bool) -> InfluxPlan | None:
    """The table [influx], None where there is none.

    Args:
        fields: of the table.
        where: the file's name, for errors.
        has_token: whether it may name a token's file. A plan may not: it travels, and whoever runs somebody else's as
            root would send a file of that one's choice to a server of that one's choice.

    Raises:
        UsageError: something in it is not as documented.
    """
    if fields is None:
        return None
    plan = InfluxPlan(
        url=checked_url(fields.text("url"), f"{where}.influx.url"),
        bucket=fields.text("bucket", DEFAULT_BUCKET),
        org=fields.text("org", ""),
        token_file=fields.text("token_file", "") if has_token else "",
        ca_file=fields.text("ca_file", ""),
    )
    fields.finish()
    return plan
