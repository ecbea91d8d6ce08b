"""Packet-outs by the block: the messages of many frames in one buffer, built by columns. Pure.

A single message is wire.openflow_requests', whose octets these are; wire.openflow, above, gives the transaction ids.
"""

import numpy as np
import numpy.typing as npt

from netprobe.wire.openflow_requests import packet_out

U8 = npt.NDArray[np.uint8]


def packet_outs(version: int, xids: npt.NDArray[np.uint32], in_port: int, frames: U8) -> U8:
    """Packet-outs as if the frames had come in at a port, for one pass through the pipeline each.

    Args:
        version: wire version.
        xids: shape (n,): transaction ids.
        in_port: OpenFlow number of the port that is played.
        frames: shape (n, size), n at least 1: Ethernet frames without FCS.

    Returns:
        Shape (n, message size), C-contiguous: what to write, row after row.

    Raises:
        UsageError: a frame is longer than a message can be.
    """
    first = np.frombuffer(packet_out(version, 0, in_port, frames[0].tobytes()), np.uint8)
    messages = np.empty((len(frames), len(first)), np.uint8)
    messages[:] = first
    messages[:, 4:8].view(">u4")[:, 0] = xids
    messages[:, len(first) - frames.shape[1] :] = frames  # the frame ends the message
    return messages
