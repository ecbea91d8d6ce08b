"""Real databases for tests: influxd 1.6.7 behind a proxy that turns v2 write requests into v1's, and VictoriaMetrics.

InfluxDB 2 and 3 are not in Debian. influxd has a real parser and the real InfluxQL, but not the v2 path; the proxy
rewrites path and query and nothing else, and keeps what it was asked: what a v2 server would see.
"""

import json
import shutil
import socket
import subprocess
import threading
import urllib.error
import urllib.parse
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from support.waiting import until

from netprobe.host.netns import in_netns

INFLUXD = shutil.which("influxd")
VICTORIA = shutil.which("victoria-metrics")
V1_PRECISION = {"ns": "n", "us": "u", "ms": "ms", "s": "s"}  # 1.6.7 takes "us" with 204, and stores it as ns
CONFIG = """
reporting-disabled = true
bind-address = "127.0.0.1:{rpc}"
[meta]
  dir = "{folder}/meta"
[data]
  dir = "{folder}/data"
  wal-dir = "{folder}/wal"
  max-series-per-database = 0
  max-values-per-tag = 0
[monitor]
  store-enabled = false
[http]
  bind-address = "127.0.0.1:{port}"
  log-enabled = false
"""


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def answers(url):
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except OSError:
        return False


class Server:
    """A server of ours; ended by its own process id."""

    def __init__(self, words, ready_url, folder):
        self.words, self.ready_url, self.folder = words, ready_url, folder
        self.process = None

    def start(self):
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(self.words, stdout=log, stderr=log, cwd=self.folder)
        until(lambda: answers(self.ready_url), 20)

    def stop(self):
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(timeout=10)
            self.process = None

    def kill(self):
        """As a crash or a loss of power of the server's machine would."""
        self.process.kill()
        self.process.wait(timeout=10)
        self.process = None


class V2Proxy(ThreadingHTTPServer):
    """v2 write requests for a v1 server; keeps the token and the query of each."""

    daemon_threads = True

    def __init__(self, backend, netns=""):
        """Listens in a network namespace; what it asks the server for goes out of ours."""
        in_netns(netns, lambda: super(V2Proxy, self).__init__(("127.0.0.1", 0), _V2Handler))
        self.backend = backend
        self.asked = []
        self._thread = threading.Thread(target=self.serve_forever, daemon=True)
        self._thread.start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def close(self):
        self.shutdown()
        self.server_close()
        self._thread.join(timeout=10)


class _V2Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        parts = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(parts.query))
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append({"path": parts.path, "token": self.headers.get("Authorization"), **query})
        if parts.path != "/api/v2/write":
            self.answer(404, b"")
            return
        database, _, policy = query["bucket"].partition("/")
        v1 = {"db": database, "precision": V1_PRECISION[query.get("precision", "ns")]}
        if policy:
            v1["rp"] = policy
        request = urllib.request.Request(
            f"{self.server.backend}/write?{urllib.parse.urlencode(v1)}", data=body, method="POST"
        )
        if self.headers.get("Content-Encoding"):
            request.add_header("Content-Encoding", self.headers["Content-Encoding"])
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                self.answer(response.status, response.read())
        except urllib.error.HTTPError as error:
            self.answer(error.code, error.read())
        except OSError as error:  # as haproxy or nginx would say it
            self.answer(503, str(error).encode())

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(0 if status == 204 else len(body)))
        self.end_headers()
        if status != 204:
            self.wfile.write(body)

    def log_message(self, *_words):
        pass


class Influx(Server):
    """influxd with a database `netprobe`, and the proxy before it."""

    def __init__(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        self.port, rpc = free_port(), free_port()
        self.v1_url = f"http://127.0.0.1:{self.port}"
        path = folder / "influxd.conf"
        path.write_text(CONFIG.format(folder=folder, port=self.port, rpc=rpc))
        super().__init__([INFLUXD, "-config", str(path)], f"{self.v1_url}/ping", folder)
        self.proxy = V2Proxy(self.v1_url)

    @property
    def url(self):
        return self.proxy.url

    def start(self):
        super().start()
        self.query("CREATE DATABASE netprobe")

    def query(self, text):
        """Result tables of InfluxQL: dicts with name, tags, columns, values."""
        data = urllib.parse.urlencode({"q": text, "db": "netprobe", "epoch": "ns"}).encode()
        with urllib.request.urlopen(f"{self.v1_url}/query", data=data, timeout=30) as response:
            (result,) = json.load(response)["results"]
        assert "error" not in result, f"{text}: {result['error']}"
        return result.get("series", [])

    def rows(self, text):
        """The same as one list of dicts, tags among the columns."""
        return [
            {**table.get("tags", {}), **dict(zip(table["columns"], row, strict=True))}
            for table in self.query(text)
            for row in table["values"]
        ]

    def close(self):
        self.stop()
        self.proxy.close()


class Victoria(Server):
    """VictoriaMetrics, whose v2 write path is its own."""

    def __init__(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        words = [VICTORIA, f"-storageDataPath={folder}/data", f"-httpListenAddr=127.0.0.1:{self.port}"]
        super().__init__([*words, "-memory.allowedBytes=64MB"], f"{self.url}/health", folder)

    def export(self, match):
        """Series with all their samples, also those that it would show only later."""
        answers(f"{self.url}/internal/force_flush")
        query = urllib.parse.urlencode({"match[]": match})
        with urllib.request.urlopen(f"{self.url}/api/v1/export?{query}", timeout=30) as response:
            return [json.loads(line) for line in response]

    def close(self):
        self.stop()
