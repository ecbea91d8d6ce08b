"""What the enforcement's own model says of a packet: a trace of switches, or the iptables evaluator. Values."""

from dataclasses import asdict, dataclass

from netprobe.model.packets import ConnState, EnforcementPoint, Packet
from netprobe.model.topology import Attachment


@dataclass(frozen=True, slots=True)
class ModelQuestion:
    """One packet whose fate a model is asked for.

    Attributes:
        packet: with concrete ports.
        src, dst: whose port it enters by, and whose it should leave by.
        state: what conntrack makes of it, at every port on its way.
        ident: the caller's own number for it.
    """

    packet: Packet
    src: Attachment
    dst: Attachment
    state: ConnState
    ident: int = 0


@dataclass(frozen=True, slots=True)
class ModelAnswer:
    """What the enforcement's own model says of a packet, and by which rule.

    Attributes:
        is_allowed: None where the model cannot say; `detail` says why.
        host: where the rule is that decides.
        place: for people: "table 82", "chain neutron-openvswi-i1234-5", "stage ls_out_acl of net1".
        table: OpenFlow table, None where it is none.
        cookie: the OpenFlow rule's ("0x…"), "" where it has none.
        chain: of iptables, "" elsewhere.
        priority: None where no rule matched, or where rules have none.
        match: as the enforcement prints it.
        rule: the user's own rule for people, "" where none is known.
        rule_id: its id in the policy, "" where the enforcement does not tell.
        kind: security-group, default-deny, anti-spoofing, conntrack-invalid, revoked, acl, plumbing, …
        point: where it decides, None where that is unknown.
        evidence: a word of judge.reason.Evidence.
        detail: what is to be said besides.
    """

    is_allowed: bool | None
    host: str = ""
    place: str = ""
    table: int | None = None
    cookie: str = ""
    chain: str = ""
    priority: int | None = None
    match: str = ""
    rule: str = ""
    rule_id: str = ""
    kind: str = ""
    point: EnforcementPoint | None = None
    evidence: str = "predicted"
    detail: str = ""

    def to_json(self) -> dict[str, object]:
        """As in docs/json.md."""
        point = None if self.point is None else {"port": self.point.port, "stage": self.point.stage.value}
        return asdict(self) | {"point": point}
