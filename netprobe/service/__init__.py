"""The programs: run, trace, discovery; every nursery. I/O."""
