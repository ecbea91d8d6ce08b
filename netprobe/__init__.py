"""netprobe: active probing of the virtual data path, segment by segment.

The folders are the data flow: plan, inject, observe, collect, judge, store, show; `model` and `wire` are shared by all,
`host` holds the systems around, `service` the programs, `cli` the arguments. See docs/architecture.md.
"""

__version__ = "0.1.0"
