"""Classic BPF: instructions with labels, to an array of struct sock_filter.

Knows nothing of probes; `bpf` and `bpf_tunnels` write the programs. Source: linux/bpf_common.h, linux/filter.h.
"""

import struct
from dataclasses import dataclass, field

MAX_INSTRUCTIONS = 4096  # BPF_MAXINSNS, linux/bpf_common.h

_OPCODES = {
    "ld": 0x40,  # A = word at X + k; a load beyond the frame ends the program with 0
    "ldh": 0x48,
    "ldb": 0x50,
    "ldh_abs": 0x28,  # A = half-word at k: the kernel's compiler has a fast path for these, and none with X
    "ldb_abs": 0x30,
    "ldx_header": 0xB1,  # X = 4 * (octet at k & 15): length of the IPv4 header that starts there
    "ldx_imm": 0x01,
    "ldx_mem": 0x61,
    "ld_length": 0x80,  # A = octets of the frame
    "tax": 0x07,
    "txa": 0x87,
    "add": 0x04,
    "add_x": 0x0C,
    "sub_x": 0x1C,
    "and": 0x54,
    "lsh": 0x64,
    "rsh": 0x74,
    "st": 0x02,
    "stx": 0x03,
    "ld_mem": 0x60,
    "ja": 0x05,
    "jeq": 0x15,
    "jgt": 0x25,
    "jge": 0x35,
    "jset": 0x45,
    "ret": 0x06,
}


@dataclass(slots=True)
class Assembler:
    """Instructions with labels; conditional jumps reach 255 instructions, `ja` any."""

    lines: list[tuple[str, int, str, str]] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)

    def op(self, name: str, k: int = 0) -> None:
        """An instruction that goes on to the next one, or ends the program."""
        self.lines.append((name, k, "", ""))

    def branch(self, name: str, k: int, yes: str = "", no: str = "") -> None:
        """A conditional jump; the empty label is the next instruction."""
        self.lines.append((name, k, yes, no))

    def jump(self, label: str) -> None:
        """Go on at a label, however far."""
        self.lines.append(("ja", 0, label, ""))

    def new_label(self) -> str:
        """A name to be placed later."""
        name = f"L{len(self.labels)}"
        self.labels[name] = -1
        return name

    def place(self, label: str) -> None:
        """The label stands before the next instruction."""
        self.labels[label] = len(self.lines)

    def accept_if(self, name: str, k: int, snap_bytes: int) -> None:
        """Pass the frame on a condition, by a return of its own: no jump is ever too long."""
        skip = self.new_label()
        self.branch(name, k, "", skip)
        self.op("ret", snap_bytes)
        self.place(skip)

    def assemble(self) -> bytes:
        """The program as an array of struct sock_filter (linux/filter.h), native byte order."""
        out = []
        for at, (name, k, yes, no) in enumerate(self.lines):
            jt = self.labels[yes] - at - 1 if yes else 0
            jf = self.labels[no] - at - 1 if no else 0
            if name == "ja":
                out.append(struct.pack("HBBI", _OPCODES[name], 0, 0, jt))
                continue
            assert 0 <= jt < 256 and 0 <= jf < 256, f"jump out of reach at {at}: {name} {k} {jt} {jf}"  # noqa: PT018  one fact
            out.append(struct.pack("HBBI", _OPCODES[name], jt, jf, k & 0xFFFFFFFF))
        return b"".join(out)
