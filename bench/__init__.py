"""The benchmarks: `make bench`, or `.venv/bin/python -m bench [--short] [--strict] [--only NAME ...]`.

Each figure is taken against a peer in the same run, in short slices that alternate, on pinned processors. A benchmark
is a function in a module of this folder (any module; all are imported by `python -m bench`), registered under its key
in results.json:

    from bench.harness import Bench, Figure, at_least, benchmark, compare

    @benchmark("inject_raw_udp")
    def inject_raw_udp(bench: Bench) -> Figure:
        with bench.pair("a", "b") as (left, right):             # two namespaces and a veth pair
            slices = bench.alternate(
                {"own": lambda: send_ours(left), "trafgen": lambda: send_trafgen(left)},   # each returns one number
                rounds=12,
            )
        main = compare(slices["own"], slices["trafgen"], unit="frames/s", peer="trafgen", target=at_least(1.0))
        return main.also(compare(..., peer="trafgen, constant frame", target=at_least(0.9)))

- The function runs in a process, a network, a mount and a PID namespace of its own (`harness/worlds.py`):
  namespaces, a lab, daemons: whatever it leaves is gone when it ends, also after Ctrl-C or kill -9. /run/netns,
  /run/netprobe, /var/log/netprobe and /var/lib/netprobe are empty there, the loopback is up. /tmp and the checkout are
  the machine's.
- `bench.cpus` are the processors: pin with `pinned(cpu)` (this thread, and what it starts) or `run(..., cpu=)`.
- `bench.alternate` runs the arms A B B A ...; each call gives the figure of one slice; slices of 0.3 to 1 s are good.
  With `--short` there are two rounds, and `bench.seconds(full, short)` says how long to take: a benchmark should then
  need less than 3 s. CI runs that and judges no times.
- `compare` judges the paired ratio own/peer, whose median and bootstrap interval it gives (netprobe/judge/paired.py);
  `measure` judges own values, with a peer's beside them if there is one. A target is missed only if the whole interval
  lies on the wrong side of it. For what must simply hold (no frame lost) add `broken="3 frames lost"`: that is missed.
- `Figure.also(...)` adds further figures; met = all of them. `Figure.note` says what a reader must know.
- A tool that is missing is `raise MissingToolError("trafgen", "netsniff-ng")`. scripts/setup installs what
  benchmarks need.

results.json: {key: {"value", "unit", "peer", "peer_value", "ratio", "interval", "target", "met", ...}}; what a
key means is in harness/figures.py.
"""
