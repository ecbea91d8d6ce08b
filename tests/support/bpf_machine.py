"""Classic BPF, interpreted: what the kernel's verdict on a frame would be (net/core/filter.c before eBPF)."""

import struct


def run(program, frame):
    """Octets of `frame` that `program` keeps; 0 is a drop. A load beyond the frame is one, as in the kernel."""
    code = list(struct.iter_unpack("HBBI", program))
    a = x = at = 0
    memory = [0] * 16
    while True:
        op, jt, jf, k = code[at]
        at += 1
        if op in (0x40, 0x48, 0x50):
            width = {0x40: 4, 0x48: 2, 0x50: 1}[op]
            if x + k + width > len(frame):
                return 0
            a = int.from_bytes(frame[x + k : x + k + width], "big")
        elif op in (0x28, 0x30):
            width = {0x28: 2, 0x30: 1}[op]
            if k + width > len(frame):
                return 0
            a = int.from_bytes(frame[k : k + width], "big")
        elif op == 0xB1:
            if k >= len(frame):
                return 0
            x = (frame[k] & 15) * 4
        elif op == 0x80:
            a = len(frame)
        elif op == 0x03:
            memory[k] = x
        elif op == 0x61:
            x = memory[k]
        elif op == 0x06:
            return k
        elif op == 0x05:
            at += k
        elif op & 0x07 == 0x05:
            holds = {0x15: a == k, 0x25: a > k, 0x35: a >= k, 0x45: a & k != 0}[op]
            at += jt if holds else jf
        elif op == 0x02:
            memory[k] = a
        elif op == 0x60:
            a = memory[k]
        elif op == 0x01:
            x = k
        elif op == 0x07:
            x = a
        elif op == 0x87:
            a = x
        else:
            a = {0x04: a + k, 0x0C: a + x, 0x1C: a - x, 0x54: a & k, 0x64: a << (k & 31), 0x74: a >> (k & 31)}[
                op
            ] & 0xFFFFFFFF
