"""Constants of what stands around a frame: VLAN tags and tunnels. The decoder and the filter share them."""

VLAN_TYPES = (0x8100, 0x88A8)  # IEEE 802.1Q, 802.1ad

GENEVE_PORT = 6081  # RFC 8926 §3.3
GENEVE_VERSION, GENEVE_CONTROL = 0xC0, 0x80  # bits of the first octet, and of the second (RFC 8926 §3.4)
TRANSPARENT_ETHERNET = 0x6558
GENEVE_PAYLOADS = (TRANSPARENT_ETHERNET, 0x0800, 0x86DD)  # what is looked into: frames, and IP packets without one

VXLAN_PORTS = (4789, 8472)  # RFC 7348 §5, and what Linux took before there was one
VXLAN_HAS_VNI = 0x08  # the I flag (RFC 7348 §5)

TUNNEL_PORTS = (GENEVE_PORT, *VXLAN_PORTS)
TUNNEL_HEADER_BYTES = 8  # of VXLAN, and of Geneve without its options
