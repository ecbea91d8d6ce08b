"""The ways of enforcement of the three labs: the original, its mutants, and how either is put into a running lab.

Each has a state, a plain value that is everything that is enforced. `apply` makes a state hold, whatever was before.
"""

import socket
import struct
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address

from mutation.flow_mutants import flow_mutants, strip_dump
from mutation.iptables_mutants import Rules, iptables_mutants
from mutation.mutants import COMPILED, POLICY, Mutant
from mutation.ovn_mutants import changes, ovn_mutants, parse_commands
from mutation.policy_mutants import policy_mutants
from netprobe.errors import NetprobeError
from netprobe.host import iptables_restore
from netprobe.host.netns import in_netns
from netprobe.host.ovs import PrivateSwitch
from netprobe.lab import logical
from netprobe.lab.acls import compile_acls
from netprobe.lab.build import central_of
from netprobe.lab.config import LabConfig
from netprobe.lab.flows import compile_flows
from netprobe.lab.hybrid import compile_forwarding
from netprobe.lab.iptables_rules import compile_iptables
from netprobe.lab.shapes import BRIDGE
from netprobe.lab.state import Places
from netprobe.lab.topology import Endpoint, bound_policy, endpoints
from netprobe.model.policy import Policy

NETLINK_NETFILTER = 12  # linux/netlink.h
_CONNTRACK_DELETE = 0x0102  # linux/nfnetlink_conntrack.h: subsystem 1, IPCTNL_MSG_CT_DELETE; without a tuple: all
_REQUEST_ACK = 0x5


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a lab can be asked.

    Attributes:
        verify_pps, tmax_ns: of a verification, and how long it waits for a packet.
        replay_pps: of the packets for survivors.
        wait_s, last_wait_s: for packets of one step of them, and behind all.
    """

    verify_pps: int = 8000
    tmax_ns: int = 100_000_000
    replay_pps: int = 10_000
    wait_s: float = 0.06
    last_wait_s: float = 0.2


class Enforcement:
    """What the three have in common.

    Args:
        config: of the lab that is up.

    Attributes:
        backend: as `netprobe verify` names it.
        lab: as `netprobe lab up` names it.
        config: bound to the addresses that the lab gives.
        own: addresses of guests by the OpenFlow numbers of their ports.
        pace: how fast the lab can be asked.
    """

    backend = lab = ""
    pace = Pace()

    def __init__(self, config: LabConfig) -> None:
        self.ends = endpoints(config)
        at = {end.name: (ip_address(end.ipv4), ip_address(end.ipv6)) for end in self.ends}
        ports = tuple(replace(port, ips=at[port.name]) for port in config.policy.ports)
        self.config = replace(config, policy=replace(config.policy, ports=ports))
        places = Places.from_environment()
        self.switches = {
            host.name: PrivateSwitch(host.netns, places.switch(host.name)) for host in config.shape.hypervisors
        }
        self.own = {f"{end.ofport:#x}": (end.ipv4, end.ipv6) for end in self.ends if not end.copy_of}
        self.original = self.compiled(self.config, self.ends)

    def mutants(self) -> Iterator[Mutant]:
        """All at both levels; those that change nothing are left out."""
        for mutant in policy_mutants(self.config.policy):
            state = self._of_policy(mutant.policy)
            if state is not None and state != self.original:
                yield Mutant(mutant.name, POLICY, mutant.kind, state)
        yield from (mutant for mutant in self.compiled_mutants() if mutant.state != self.original)

    def _of_policy(self, policy: Policy) -> object:
        """What a policy compiles to; None where a compiler refuses it."""
        groups = {port.name: port.groups for port in policy.ports}
        ends = tuple(replace(end, groups=groups[end.copy_of or end.name]) for end in self.ends)
        try:
            return self.compiled(replace(self.config, policy=policy), ends)
        except NetprobeError:
            return None

    def compiled(self, config: LabConfig, ends: Sequence[Endpoint]) -> object:
        """The state that a configuration compiles to."""
        raise NotImplementedError

    def compiled_mutants(self) -> Iterator[Mutant]:
        """Mutants of the original state."""
        raise NotImplementedError

    def apply(self, state: object) -> None:
        """Make a state hold, no switch go by flows of before, and no connection be remembered."""
        self.put(state)
        for switch in self.switches.values():
            switch.appctl("revalidator/purge")
            switch.appctl("revalidator/wait")
        self.flush()

    def put(self, state: object) -> None:
        """Make a state hold."""
        raise NotImplementedError

    def flush(self) -> None:
        """Forget all connections."""
        for switch in self.switches.values():
            switch.appctl("dpctl/flush-conntrack")


class OvsCt(Enforcement):
    """Lab single: flows in Neutron's layout."""

    backend, lab = "ovs-ct", "single"
    tables = (71, 72, 81, 82)

    def compiled(self, config, ends):
        compiled = compile_flows(config, ends, self._zone)
        self._names = {f"{cookie:#x}": f"{info.id or info.kind} {info.port}" for cookie, info in compiled.rules.items()}
        return tuple(compiled.flows)

    @property
    def _zone(self):
        return 1

    def compiled_mutants(self):
        zone = "ct(table=72,zone=NXM_NX_REG6[0..15])"
        commit = "ct(commit,zone=NXM_NX_REG6[0..15]),output:{port},resubmit(,92)"
        passes = {71: zone, 72: "resubmit(,73)", 82: commit}
        self.compiled(self.config, self.ends)  # its names
        yield from flow_mutants(self.original, self.tables, passes, self._names, self.own)

    def put(self, state):
        (switch,) = self.switches.values()
        switch.replace_flows(BRIDGE, state)


class Bridge(Enforcement):
    """Lab bridge: iptables before a switch that looks at neighbour discovery and MACs."""

    backend, lab = "bridge", "bridge"

    def compiled(self, config, ends):
        rules, forwarding = compile_iptables(config, ends), compile_forwarding(config, ends)
        self._names = {
            f"{cookie:#x}": f"{info.id or info.kind} {info.port}" for cookie, info in forwarding.rules.items()
        }
        return Rules((rules.tables[4], rules.tables[6]), rules.ipsets, tuple(forwarding.flows))

    def compiled_mutants(self):
        guests = {end.tap: end.name for end in self.ends if not end.copy_of}
        taken = {ip for ips in self.own.values() for ip in ips}
        yield from iptables_mutants(self.original, guests, taken)
        passes = {24: "resubmit(,25)", 25: "resubmit(,60)"}
        for mutant in flow_mutants(self.original.flows, (24, 25), passes, self._names, self.own):
            yield replace(mutant, state=replace(self.original, flows=mutant.state))

    def put(self, state):
        (host,) = self.config.shape.hypervisors
        names = [line.split()[1] for line in state.sets.splitlines() if line.startswith("create")]
        creates = "".join(f"{line} -exist\n" for line in state.sets.splitlines() if line.startswith("create"))
        adds = "".join(f"{line}\n" for line in state.sets.splitlines() if line.startswith("add"))
        iptables_restore.restore_sets(host.netns, creates + "".join(f"flush {name}\n" for name in names) + adds)
        for family, text in zip((4, 6), state.tables, strict=True):
            iptables_restore.restore(host.netns, family, text)
        (switch,) = self.switches.values()
        switch.replace_flows(BRIDGE, state.flows)

    def flush(self):
        super().flush()
        (host,) = self.config.shape.hypervisors
        flush_kernel(host.netns)


def flush_kernel(netns):
    """Empty the kernel's conntrack table of a namespace."""
    sock = in_netns(netns, lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER))
    with sock:
        sock.settimeout(5)
        sock.send(struct.pack("=IHHII4x", 20, _CONNTRACK_DELETE, _REQUEST_ACK, 1, 0))
        (code,) = struct.unpack_from("=i", sock.recv(4096), 16)
        assert code == 0, f"conntrack of {netns} could not be flushed: {code}"


class Ovn(Enforcement):
    """Lab pair: rows of the northbound database, and single flows that are taken away behind OVN's back."""

    backend, lab = "ovn", "pair"

    def __init__(self, config):
        super().__init__(config)
        self._now = self.original
        self._gone = []

    def compiled(self, config, ends):
        policy = bound_policy(config, ends)
        return parse_commands(logical.commands(config.shape, ends, policy, compile_acls(config, ends)))

    def compiled_mutants(self):
        names = {end.iface_id: end.name for end in self.ends}
        yield from ovn_mutants(self.original, names)
        for host, title, text in self._guarding_flows():
            state = replace(self.original, gone=((host, title, text),))
            yield Mutant(f"flow on {host} deleted behind OVN's back [{title}]: {text}", COMPILED, "flow gone", state)

    def put(self, state):
        self._put_back()
        central = central_of(Places.from_environment())
        for commands in changes(self._now, state):
            if commands:
                central.nbctl(*logical.joined(commands))
        central.wait_for_hosts()
        self._now = state
        for host, title, text in state.gone:
            there = self._there_now(host, title, text)
            match = there.partition(",actions=")[0].split(",")
            self._ofctl(host, "--strict", "del-flows", ",".join(word for word in match if "cookie" not in word))
            self._gone.append((host, there))

    def _there_now(self, host, title, text):
        """The flow as it is by now, or one like it: OVN may have put an ACL into flows anew, in another way."""
        there = sorted(flow for name, match, flow in self._guarding_flows() if (name, match) == (host, title))
        assert there, f"{host} has no flow of {title}"
        same = (flow for flow in there if flow.partition(",")[2] == text.partition(",")[2])
        return next(same, there[0])

    def _put_back(self):
        while self._gone:
            host, text = self._gone.pop()
            self._ofctl(host, "add-flow", text)

    def _ofctl(self, host, *words):
        switch = self.switches[host]
        options = [word for word in words if word.startswith("--")]
        command, *rest = [word for word in words if not word.startswith("--")]
        where = ["ovs-ofctl", "-OOpenFlow15", "--timeout=10", *options, command, switch.management(BRIDGE), *rest]
        return subprocess.run(where, check=True, capture_output=True, text=True, timeout=20).stdout

    def _guarding_flows(self):
        """Flows of ACLs on the hypervisors where their guests are: host, logical match, text."""
        central = central_of(Places.from_environment())
        networks = dict(_rows(central.sbctl("--bare", "--columns=_uuid,tunnel_key", "find", "Datapath_Binding")))
        columns = "--columns=logical_port,datapath,tunnel_key"
        keys = {
            port: (int(networks[network]), int(key))
            for port, network, key in _rows(central.sbctl("--bare", columns, "find", "Port_Binding"))
        }
        acls = _acl_flows(central.sbctl("--uuid", "lflow-list"))
        for host in self.switches:
            here = {keys[end.iface_id] for end in self.ends if end.host == host and not end.copy_of}
            for line in self._ofctl(host, "--no-stats", "dump-flows").splitlines():
                if "cookie=" not in line:
                    continue
                text = strip_dump(line)
                cookie = text.partition("cookie=0x")[2].partition(",")[0]
                match = acls.get(f"{int(cookie or '0', 16):08x}")
                words = dict(word.partition("=")[::2] for word in text.partition(",actions=")[0].split(","))
                port = words.get("metadata", "0"), words.get("reg15", words.get("reg14", "0"))
                if match is not None and tuple(int(key, 0) for key in port) in here:
                    yield host, match, text


def _rows(text):
    """Rows of ovn-sbctl --bare, a tuple of their columns each."""
    return [tuple(row.splitlines()) for row in text.strip().split("\n\n")]


def _acl_flows(text):
    """The matches of logical flows of ACLs, by the first 32 bits of their ids, which are cookies."""
    found = {}
    for line in text.splitlines():
        uuid, _, rest = line.strip().partition(", ")
        if "_acl " in rest and "priority=65" not in rest and "reg" in rest:
            match = rest.partition("match=(")[2].rpartition("), action=")[0]
            if match and match != "1":
                found[uuid.removeprefix("uuid=0x")[:8]] = match
    return found


class OvsKernel(OvsCt):
    """Lab ovs-kernel: the same flows, and the kernel's module carries them out, in an emulated machine: slowly."""

    backend, lab = "ovs-kernel", "ovs-kernel"
    pace = Pace(verify_pps=150, tmax_ns=1_000_000_000, replay_pps=300, wait_s=1.0, last_wait_s=2.0)


class OvsDpdk(OvsCt):
    """Lab dpdk: the same flows, and DPDK's polling threads carry them out."""

    backend, lab = "ovs-dpdk", "dpdk"


BACKENDS = {each.backend: each for each in (OvsCt, OvsDpdk, Bridge, Ovn)}
ALL = BACKENDS | {OvsKernel.backend: OvsKernel}
"""With the one that needs a kernel of its own, and an hour."""
