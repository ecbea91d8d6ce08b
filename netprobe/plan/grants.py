"""What a certificate lets an agent do: its role, the points that it may report, the ports that it may inject on.

Grants stand in the certificate as URIs (`netprobe:role:…`, `netprobe:report:GLOB`, `netprobe:inject:GLOB@PPS`). Pure:
host.pki, above, takes them out of certificates; the collector asks here. docs/trust.md says who is trusted for what.
"""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase

from netprobe.errors import RefusedError, UsageError, unknown_name

SCHEME = "netprobe"
DEFAULT_INJECT_PPS = 1_000
MAX_INJECT_PPS = 1_000_000
MAX_GRANTS = 256
MAX_GLOB = 128

_GLOB = re.compile(r"[A-Za-z0-9._:/*?+-]+", re.ASCII)
"""Names of hosts, points, guests and devices, UUIDs, MACs and addresses; `*` and `?` as in a shell. No sets of
characters and no "@": it separates the rate."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", re.ASCII)
_PPS = re.compile(r"[0-9]{1,7}", re.ASCII)


class Role(Enum):
    """Who somebody is."""

    VSWITCH = "vswitch"
    BYPASS = "bypass"
    GUEST = "guest"
    OPERATOR = "operator"
    COLLECTOR = "collector"

    @property
    def is_agent(self) -> bool:
        """Whether it reports and injects."""
        return self in (Role.VSWITCH, Role.BYPASS, Role.GUEST)


@dataclass(frozen=True, slots=True)
class InjectGrant:
    """Ports, by any of their names, and packets a second of everything that is injected on them at a time."""

    glob: str
    pps: int


@dataclass(frozen=True, slots=True)
class Grants:
    """What an agent may do.

    Attributes:
        report: shell patterns of places (`<host>/<point id>`); `*` crosses the slash.
        inject: where it may send from, and how much; the first that fits and has room is used up.
    """

    report: tuple[str, ...] = ()
    inject: tuple[InjectGrant, ...] = ()

    def may_report(self, place: str) -> bool:
        """Whether the agent may report a point (model.points.Point.place)."""
        return any(fnmatchcase(place, glob) for glob in self.report)

    def check_inject(self, names: Iterable[str], pps: float) -> None:
        """Let one order pass, if nothing else is being injected.

        Args:
            names: everything that the port is called.
            pps: packets a second.

        Raises:
            RefusedError: no grant covers it.
        """
        self.check_orders([(tuple(names), pps)])

    def check_orders(self, orders: Iterable[tuple[Iterable[str], float]]) -> None:
        """Let several orders pass that are carried out at the same time.

        Args:
            orders: names of the port and packets a second, for each.

        Raises:
            RefusedError: one is on a port that no grant names, or all together are too fast.
        """
        left = [float(grant.pps) for grant in self.inject]
        for names, pps in orders:
            known = tuple(names)
            fitting = [i for i, grant in enumerate(self.inject) if any(fnmatchcase(n, grant.glob) for n in known)]
            port = " / ".join(known) or "(no name)"
            if not fitting:
                allowed = ", ".join(grant.glob for grant in self.inject) or "none"
                raise RefusedError(f"port {port}", "is not granted to this agent for injecting", allowed=allowed)
            if not 0 < pps <= MAX_INJECT_PPS:
                raise RefusedError(f"port {port}", f"{pps:g} packets/s", allowed=f"more than 0, up to {MAX_INJECT_PPS}")
            chosen = next((i for i in fitting if left[i] >= pps), None)
            if chosen is None:
                most = max(left[i] for i in fitting)
                raise RefusedError(
                    f"port {port}",
                    f"{pps:g} packets/s are more than this agent's certificate grants",
                    allowed=f"up to {most:g} packets/s beside what is being sent",
                )
            left[chosen] -= pps

    def check_role(self, name: str, role: Role) -> None:
        """Whether grants like these may be given to somebody.

        Raises:
            UsageError: they may not: a collector or an operator neither reports nor injects, and a guest's agent is not
                trusted with points of anybody else.
        """
        if not role.is_agent and (self.report or self.inject):
            raise UsageError(f"{name}: grants", f"a certificate of role {role.value} has none", allowed="agents only")
        for glob in self.report if role is Role.GUEST else ():
            point = glob.rpartition("/")[2]
            if not point.endswith(".guest") or "*" in point or "?" in point:
                raise UsageError(
                    f"{name}: report {glob!r}",
                    "a guest's agent may report its own point alone",
                    allowed=f"such as */{name}.guest",
                )


def default_report(name: str, role: Role) -> tuple[str, ...]:
    """What an agent may report where nobody says anything else: its host, or its own guest's points."""
    return {
        Role.VSWITCH: (f"{name}/*",),
        Role.BYPASS: (f"*/{name}.*",),
        Role.GUEST: (f"*/{name}.guest",),
    }.get(role, ())


def check_name(name: str, where: str) -> str:
    """A name that may stand in a certificate and in a file's name.

    Raises:
        UsageError: it may not.
    """
    if not _NAME.fullmatch(name):
        allowed = "1 to 63 letters, digits, dots, dashes and underscores, the first a letter or digit"
        raise UsageError(where, f"the name {name[:80]!r} cannot be used", allowed=allowed)
    return name


def parse_glob(text: str, where: str) -> str:
    """A shell pattern of a grant.

    Raises:
        UsageError: it is none.
    """
    if len(text) > MAX_GLOB or not _GLOB.fullmatch(text):
        allowed = f"1 to {MAX_GLOB} of A-Z a-z 0-9 . _ : / + - and * ?"
        raise UsageError(where, f"{text[:MAX_GLOB]!r} is no pattern", allowed=allowed)
    return text


def parse_inject(text: str, where: str) -> InjectGrant:
    """`GLOB` or `GLOB@PPS`.

    Raises:
        UsageError: it is neither.
    """
    glob, at, rate = text.partition("@")
    if not at:
        return InjectGrant(parse_glob(glob, where), DEFAULT_INJECT_PPS)
    if not _PPS.fullmatch(rate) or not 1 <= int(rate) <= MAX_INJECT_PPS:
        raise UsageError(where, f"{rate[:MAX_GLOB]!r} is no rate", allowed=f"1 to {MAX_INJECT_PPS} packets/s")
    return InjectGrant(parse_glob(glob, where), int(rate))


def parse_role(text: str, where: str) -> Role:
    """A role by its name.

    Raises:
        UsageError: there is none of it.
    """
    try:
        return Role(text)
    except ValueError:
        raise unknown_name(where, text[:MAX_GLOB], (role.value for role in Role), kind="role") from None


def format_uris(role: Role, grants: Grants) -> tuple[str, ...]:
    """The URIs of a certificate."""
    return (
        f"{SCHEME}:role:{role.value}",
        *(f"{SCHEME}:report:{glob}" for glob in grants.report),
        *(f"{SCHEME}:inject:{grant.glob}@{grant.pps}" for grant in grants.inject),
    )


def _parse_uri(uri: str, where: str) -> Role | str | InjectGrant:
    """A role, the glob of a report grant, or an inject grant."""
    scheme, _, rest = uri.partition(":")
    what, _, value = rest.partition(":")
    if (scheme, what) == (SCHEME, "role"):
        return parse_role(value, where)
    if (scheme, what) == (SCHEME, "report"):
        return parse_glob(value, where)
    if (scheme, what) == (SCHEME, "inject"):
        return parse_inject(value, where)
    raise UsageError(where, f"it says {uri[:MAX_GLOB]!r}", allowed="role, report and inject")


def parse_uris_untrusted(uris: Collection[str], where: str) -> tuple[Role, Grants]:
    """Role and grants out of a certificate's URIs.

    Raises:
        RefusedError: there is not one role, or something is said that this program does not understand.
    """
    if len(uris) > MAX_GRANTS:
        raise RefusedError(where, f"it has {len(uris)} grants", allowed=f"up to {MAX_GRANTS}")
    try:
        found = [_parse_uri(uri, where) for uri in uris]
    except UsageError as error:
        raise RefusedError(where, error.problem, allowed=error.allowed) from error
    roles = [one for one in found if isinstance(one, Role)]
    if len(roles) != 1:
        raise RefusedError(where, f"it has {len(roles)} roles", allowed="one", advice="issue it with `netprobe pki`")
    report = tuple(one for one in found if isinstance(one, str))
    return roles[0], Grants(report, tuple(one for one in found if isinstance(one, InjectGrant)))
