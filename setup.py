"""What a wheel has beside Python: the BPF object, compiled here, so that no host needs a compiler."""

import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


class BuildWithBpf(build_py):
    """Runs scripts/bpf before files are gathered. An editable install has its own way to it: scripts/setup."""

    def run(self) -> None:
        """Build; without a compiler the wheel lacks the object, and vrings are unobserved by uprobes."""
        if not self.editable_mode:
            script = ROOT / "scripts" / "bpf"
            if not script.is_file():  # a source distribution, with the object that it was made with, if any
                print("netprobe: the BPF object is not built here", file=sys.stderr)
            elif subprocess.run([script], check=False).returncode:
                for outdated in ROOT.glob("netprobe/observe/bpf/*.bpf.o*"):
                    outdated.unlink()
                print("netprobe: built without the BPF object: no uprobes at vrings", file=sys.stderr)
        super().run()


# Python's part is for any processor, the object for one.
PLATFORM = sysconfig.get_platform().replace("-", "_").replace(".", "_")

setup(cmdclass={"build_py": BuildWithBpf}, options={"bdist_wheel": {"plat_name": PLATFORM}})
