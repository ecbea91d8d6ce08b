"""Port ranges as value/mask pairs: the same that plan.covering has a probe for."""

from netprobe.plan.port_masks import range_masks

__all__ = ["range_masks"]
