"""The policy of 40 rules (policies/forty.toml) for the network of each lab."""

from pathlib import Path

FORTY = Path(__file__).parent / "policies" / "forty.toml"
NETWORKS = {"single": ("10.0.0.", "fd00:10::"), "bridge": ("10.0.0.", "fd00:10::"), "pair": ("10.1.0.", "fd00:1::")}


def forty(lab="single"):
    """The text for a lab's first network."""
    ipv4, ipv6 = NETWORKS[lab]
    return FORTY.read_text().replace("10.0.0.", ipv4).replace("fd00:10::", ipv6)


def forty_file(place, lab="single"):
    """The same as a file in a directory: the argument of `netprobe lab up --config` and `netprobe verify`."""
    path = Path(place) / f"forty-{lab}.toml"
    path.write_text(forty(lab))
    return path
