"""Rules put into the lab's switch behind netprobe's back: faults that a relay cannot make. Always taken out again."""

import subprocess
from contextlib import contextmanager

COOKIE = "0xfa17"


def ofctl(place, *words):
    command, *rest = words
    management = f"unix:{place}/lab/hv1/br-int.mgmt"
    subprocess.run(["ovs-ofctl", "-OOpenFlow15", "--timeout=5", command, management, *rest], check=True, timeout=10)


@contextmanager
def rules(place, *flows):
    """Within, these flows are in the switch of lab `single`."""
    try:
        for flow in flows:
            ofctl(place, "add-flow", f"cookie={COOKIE},{flow}")
        yield
    finally:
        ofctl(place, "del-flows", f"cookie={COOKIE}/-1")


def swallow_longer_than(frame_bytes, port):
    """Flows that drop what enters at an OpenFlow port and is longer; a known plague."""
    measure = f"check_pkt_larger({frame_bytes})->NXM_NX_REG15[0]"
    return (
        f"table=0,priority=30000,ip,in_port={port},actions={measure},resubmit(,250)",
        "table=250,priority=10,reg15=1,actions=drop",
        "table=250,priority=5,actions=resubmit(,60)",
    )
