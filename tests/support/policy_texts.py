"""The policy of 40 rules (policies/forty.toml) for the network of each lab."""

import re
from pathlib import Path

FORTY = Path(__file__).parent / "policies" / "forty.toml"
FLAT = ("10.0.0.", "fd00:10::")
NETWORKS = {"single": FLAT, "bridge": FLAT, "dpdk": FLAT, "ovs-kernel": FLAT, "pair": ("10.1.0.", "fd00:1::")}


def forty(lab="single"):
    """The text for a lab's first network."""
    ipv4, ipv6 = NETWORKS[lab]
    text = FORTY.read_text().replace("10.0.0.", ipv4).replace("fd00:10::", ipv6)
    # Ports of DPDK's that have a device of the kernel: what is proved is the switch, and nobody is at home anyhow.
    return re.sub(r'(\[\[guest\]\]\nname = "\w+"\n)', r"\1machine = false\n", text) if lab == "dpdk" else text


def forty_file(place, lab="single"):
    """The same as a file in a directory: the argument of `netprobe lab up --config` and `netprobe verify`."""
    path = Path(place) / f"forty-{lab}.toml"
    path.write_text(forty(lab))
    return path
