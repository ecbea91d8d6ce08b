"""What an installed netprobe has that a checkout gets from scripts/setup."""

import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from netprobe.observe.vring import OBJECT

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]


def test_a_wheel_has_the_bpf_object_also_where_none_was_built_in_the_checkout(tmp_path):
    """So no host that netprobe is installed on needs a compiler."""
    source = tmp_path / "source"
    for name in subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.split(
        b"\0"
    ):
        path = Path(name.decode())
        if path.name and (ROOT / path).is_file():
            (source / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / path, source / path)
    words = ["wheel", ".", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(tmp_path)]
    subprocess.run([sys.executable, "-m", "pip", *words], cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.stem.endswith(f"-py3-none-linux_{platform.machine()}"), "its object is for one processor"
    packed = zipfile.ZipFile(wheel).read(f"netprobe/observe/{OBJECT}")
    assert (packed[:4], int.from_bytes(packed[18:20], "little")) == (b"\x7fELF", 247), "EM_BPF"
    assert b"np_dequeued" in packed
