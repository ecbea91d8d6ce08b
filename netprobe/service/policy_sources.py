"""Where a policy comes from: a file of the user's, an export of Neutron's, OVN's northbound database; one or two."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from netprobe.errors import UsageError
from netprobe.host.ovn_policy import read_northbound
from netprobe.judge.findings import Finding, FindingKind
from netprobe.judge.policy_compare import compare_policies
from netprobe.model.policy import Policy
from netprobe.plan.policy_file import parse_policy
from netprobe.plan.policy_neutron import parse_neutron
from netprobe.plan.policy_ovn import policy_from_northbound

EXPORT_MAX_BYTES = 1 << 28


@dataclass(frozen=True, slots=True)
class PolicySources:
    """What should hold, and where the other source says otherwise.

    Attributes:
        is_own: the user wrote it for the ports that are here; else it is a whole cloud's.
    """

    policy: Policy
    where: str
    discrepancies: tuple[Finding, ...] = ()
    is_own: bool = False


def read_policies(path: str | None, neutron: str | None, ovn: str | None) -> PolicySources:
    """The policy to prove.

    Args:
        path: a policy file.
        neutron: folder with an export.
        ovn: OVSDB remote of the northbound database.

    Raises:
        UsageError: none is named, both a file and another source, or one cannot be read.
        HostNotReadyError: the database does not answer.
    """
    if path is not None and (neutron or ovn):
        other = "--neutron" if neutron else "--ovn"
        raise UsageError(
            "verify", f"both POLICY and {other}", advice="name one source; --neutron and --ovn together compare"
        )
    if path is not None:
        return PolicySources(parse_policy(_text(Path(path)), path), path, is_own=True)
    if neutron is None and ovn is None:
        raise UsageError("verify", "no policy", advice="name a policy file, --neutron DIR or --ovn REMOTE")
    promised = parse_neutron(_export(Path(neutron)), neutron) if neutron else None
    if ovn is None:
        assert promised is not None and neutron is not None  # noqa: PT018  one of the two is there
        return PolicySources(promised, neutron)
    actual = policy_from_northbound(read_northbound(ovn), ovn)
    if promised is None or neutron is None:
        return PolicySources(actual, ovn)
    found = tuple(Finding(FindingKind.DIVERGENCE, each.text()) for each in compare_policies(promised, actual))
    return PolicySources(promised, neutron, found)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"policy {path}", f"cannot be read: {error.strerror}", advice="check the path") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"policy {path}", "is no UTF-8 text", advice="see docs/policy.md") from error


def _export(folder: Path) -> Mapping[str, str]:
    """The JSON files of an export, by their names."""
    if not folder.is_dir():
        raise UsageError(f"--neutron {folder}", "is no folder", advice="docs/policy.md says which commands fill it")
    return {path.name: _text(path) for path in sorted(folder.glob("*.json"))}
