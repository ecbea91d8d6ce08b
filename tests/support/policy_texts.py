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


def thousand(guests=50, rules=1000):
    """A policy of so many rules over so many guests: a group of its own for each, which trusts some of the others."""
    each = rules // guests - 1
    lines = ['[[group]]\nname = "out"\n[[group.rule]]\ndirection = "egress"']
    for number in range(guests):
        lines.append(f'[[group]]\nname = "g{number}"')
        # What is left over, so that the numbers come out even: one rule of `out` serves all.
        lines += [_ingress(number, index) for index in range(each + (number < rules - 1 - each * guests))]
    for number in range(guests):
        lines.append(f'[[guest]]\nname = "vm{number + 1}"\ngroups = ["out", "g{number}"]')
    return "\n".join(lines) + "\n"


def _ingress(number, index):
    kinds = (
        f'protocol = "tcp"\nport = {1000 + 17 * index + number}',
        f'protocol = "udp"\nport = "{20000 + 40 * index}-{20000 + 40 * index + 1 + number % 7}"',
        f'protocol = "tcp"\nport = {30000 + index}\nremote_group = "g{(number + index) % 50}"',
        f'protocol = "tcp"\nport = {40000 + index}\nethertype = "ipv4"\nremote_prefix = "10.0.0.{4 * (index % 12)}/30"',
        f'protocol = "udp"\nport = {50000 + index}\nethertype = "ipv6"',
    )
    return f'[[group.rule]]\ndirection = "ingress"\n{kinds[index % len(kinds)]}'
