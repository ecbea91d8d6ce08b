"""A small cloud on one machine, with faults and truth logs. I/O."""
