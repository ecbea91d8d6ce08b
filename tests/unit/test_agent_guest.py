"""The guest agent's command line and its packing: arguments, exit codes, what goes into the zipapp."""

import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from netprobe_agents.guest import main
from netprobe_agents.serve import read_key

from netprobe.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]


def load_build_zipapp():
    spec = importlib.util.spec_from_file_location("build_zipapp", ROOT / "agents" / "build_zipapp.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["--reflect-port", "65536"], "allowed: 0 to 65535"),
        (["--reflect-port", "0"], "nothing to do"),
        (["send", "--to", "vm1"], "no IP address"),
        (["send", "--to", "192.0.2.1", "--count", "0"], "allowed: 1 to"),
        (["send", "--to", "192.0.2.1", "--rate", "0"], "out of range"),
        (["send", "--to", "192.0.2.1", "--port", "0"], "out of range"),
        (["send", "--to", "192.0.2.1", "--auth-key-file", "/nonexistent"], "cannot be read"),
    ],
)
def test_wrong_arguments_exit_2_and_say_what_is_allowed(argv, text, capsys):
    assert main(argv) == 2
    assert text in capsys.readouterr().err


def test_a_key_file_must_be_private_and_long_enough(tmp_path):
    path = tmp_path / "key"
    path.write_bytes(b"0123456789abcdef\n")
    path.chmod(0o644)
    with pytest.raises(UsageError, match="chmod 600"):
        read_key(path)
    path.chmod(0o600)
    assert read_key(path) == b"0123456789abcdef"
    path.write_bytes(b"short\n")
    with pytest.raises(UsageError, match="at least 16"):
        read_key(path)


def test_help_needs_no_trio():
    code = "import sys, netprobe_agents.guest; print('trio' in sys.modules, 'numpy' in sys.modules)"
    path = f"{ROOT}:{ROOT / 'agents'}"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "False"]


def test_the_zipapp_is_reproducible_small_and_holds_only_what_is_needed(tmp_path):
    build = load_build_zipapp().build
    first, second = build(tmp_path / "a.pyz"), build(tmp_path / "sub" / "b.pyz")
    assert first.read_bytes() == second.read_bytes()
    assert first.stat().st_size < 2 << 20
    names = zipfile.ZipFile(first).namelist()
    assert {"__main__.py", "netprobe/wire/stamp.py", "netprobe_agents/guest.py", "netprobe_agents/session.py"} <= set(
        names
    )
    assert not [name for name in names if name.startswith(("netprobe/model", "netprobe/host", "netprobe/observe"))]


def test_an_import_that_a_guest_lacks_fails_the_build(tmp_path, monkeypatch):
    module = load_build_zipapp()
    (tmp_path / "heavy.py").write_text("def f():\n    import numpy\n")
    monkeypatch.setattr(module, "SOURCE_FOLDERS", (tmp_path,))
    with pytest.raises(SystemExit, match="numpy is neither ours"):
        module.collect("heavy")
