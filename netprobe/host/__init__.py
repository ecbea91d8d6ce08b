"""The systems around netprobe, one file each: namespaces, Open vSwitch, OpenFlow. I/O."""
