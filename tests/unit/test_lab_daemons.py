"""How the lab starts daemons, without starting any."""

from types import SimpleNamespace

from netprobe.lab import daemons


class Switch:
    """A switch whose calls are written down."""

    server_argv = switch_argv = ("x",)

    def __init__(self, calls):
        self.calls = calls

    def create_database(self):
        self.calls.append("database")

    def start_server(self):
        self.calls.append("server")

    def configure(self):
        self.calls.append("configured")

    def start_switch(self):
        self.calls.append("switch")
        return None, None


class Journal:
    """Takes everything."""

    def intend(self, *_):
        pass

    def started(self, *_):
        pass


def test_a_vswitch_is_not_started_before_it_would_count_the_processors(monkeypatch):
    """Its clock begins at the boot; a machine that has run for long waits for nothing."""
    for uptime_s, waits in ((9.25, ["waited 1.75"]), (11.0, []), (1e6, [])):
        calls = []
        clock = SimpleNamespace(
            monotonic=lambda uptime_s=uptime_s: uptime_s, sleep=lambda s, calls=calls: calls.append(f"waited {s:g}")
        )
        monkeypatch.setattr(daemons, "time", clock)
        daemons.start_switch("hv1", Switch(calls), Journal())
        assert calls == ["database", "server", "configured", *waits, "switch"]
