"""State files as labs leave them: OLD of a lab with one host and nothing optional, new() of one with all there is."""

import copy

OLD = {
    "schema": 1,
    "hosts": [
        {"name": "hv1", "netns": "hv1", "bridge": "br-int", "ovs_rundir": "/r", "allowlist": "/a.toml", "zone": 1}
    ],
    "guests": [
        {
            "name": "vm1",
            "host": "hv1",
            "netns": "vm1",
            "device": "eth0",
            "mac": "FA:16:3e:00:00:01",
            "ipv4": "10.0.0.1",
            "ipv6": "fd00:10::1",
            "groups": ["web"],
            "agent": "/vm1.sock",
            "port": {"iface_id": "u1", "ofport": 1, "device": "tapvm1"},
            "chain": ["vm1.guest", "vm1.backend"],
        }
    ],
    "bypasses": [],
    "points": [
        {"id": "vm1.guest", "kind": "guest", "host": "vm1", "netns": "vm1", "device": "eth0"},
        {"id": "vm1.backend", "kind": "backend", "host": "hv1", "netns": "hv1", "device": "tapvm1"},
        {"id": "hv1.vswitch", "kind": "vswitch", "host": "hv1", "netns": "", "device": ""},
    ],
    "rules": {"0x1": {"port": "vm1"}},
}


def new():
    state = copy.deepcopy(OLD)
    state["points"] += [
        {"id": "hv1.nic", "kind": "nic", "host": "hv1", "netns": "hv1", "device": "nic0"},
        {"id": "fabric.hv1", "kind": "fabric", "host": "fabric", "netns": "fabric", "device": "hv1"},
    ]
    state["hosts"][0] |= {"uplink": ["hv1.nic", "fabric.hv1"], "encap_ips": ["172.30.0.1"], "chassis": "hv1"}
    state["hosts"][0] |= {"management_ip": "172.31.0.1", "zone": None}
    state["guests"][0] |= {"network": "net1", "prefixes": ["10.0.0.0/24", "fd00:10::/64"]}
    state["guests"][0] |= {"gateway_mac": "00:00:00:01:00:FE", "floating": "172.24.0.11"}
    state["guests"][0] |= {"behind_nat": {"ext": "172.24.0.100"}}
    state["ovn"] = {"northbound": "unix:/nb.sock", "southbound": "unix:/sb.sock"}
    state["management"] = {"netns": "central", "ip": "172.31.0.254"}
    state["routers"] = [{"router": "r1", "network": "net1"}, {"router": "r1", "network": "ext", "gateway": "hv1"}]
    return state
