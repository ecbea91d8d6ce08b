"""Build the machine of the lab `ovs-kernel`: `hypervisor.py SOURCE`, where SOURCE is a disk to be made.

Its kernel is Debian's for clouds, which has Open vSwitch's kernel datapath. One disk holds this machine's Python and
the tools of a lab; it is kept by what is in it. Another one, made each time, holds netprobe as it is in this checkout.
The machine's one service runs what it is told to (orders.py). Prints where all of it is, as JSON.
"""  # noqa: INP001  a script beside what it packs

import argparse
import fcntl
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import build
from build import HERE, ROOT, cache_folder, cpio_entry, extract_kernel, run

MODULES = (
    "virtio_pci", "virtio_blk", "virtio_console", "ext4", "openvswitch", "nf_conntrack_netlink", "veth", "tun",
    "bridge", "sch_ingress", "cls_bpf", "cls_u32", "act_mirred", "act_police", "sch_netem", "nf_nat", "nf_defrag_ipv6",
    "vport_geneve",
)  # fmt: skip
PROGRAMS = (
    "ip", "tc", "ethtool", "ovs-vsctl", "ovs-ofctl", "ovs-appctl", "ovs-dpctl", "ovsdb-tool", "ovsdb-server",
    "ovs-vswitchd", "bash", "sysctl",
)  # fmt: skip
WRAPPER = """#!/bin/sh
exec python3 -m netprobe.cli.main "$@"
"""
PACKAGES = (
    "numpy", "numpy.libs", "scipy", "scipy.libs", "trio", "attr", "attrs", "sortedcontainers", "outcome", "sniffio",
    "idna", "msgspec", "ovs", "rich", "pygments", "markdown_it", "mdurl", "scapy", "cryptography", "cffi",
    "_cffi_backend*", "duckdb", "_duckdb*", "adbc_driver_duckdb", "typing_extensions.py", "pycparser",
)  # fmt: skip
"""What netprobe imports where policies are proved."""

LEFT_OUT = ("test", "tests", "idlelib", "ensurepip", "lib2to3", "tkinter", "turtledemo", "__pycache__", "config-3*")

FILES = ("/etc/protocols", "/etc/services", "/etc/passwd", "/etc/group", "/usr/share/openvswitch/vswitch.ovsschema")
APPLETS = ("sh", "cat", "ls", "sleep", "mkdir", "cp", "rm", "env", "uname", "grep", "dmesg", "kill", "id", "date", "ps")
SITE, SOURCE, WORK = "/site", "/source", "/work"
ORDERS = "agents/guest-image/orders.py"
PARTS = ("netprobe", "agents/netprobe_agents", "tests/support", "tests/mutation")
INIT = """#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /root
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
while read module; do /bin/busybox insmod /modules/$module || echo "hypervisor: no $module"; done < /modules/order
/bin/busybox mount -t ext4 -o ro /dev/vda /root || exec /bin/busybox sh
exec /bin/busybox switch_root /root /init
"""
START = """#!/bin/busybox sh
export PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/run LANG=C.UTF-8
export PYTHONDONTWRITEBYTECODE=1 NETPROBE_TOOL_TIMEOUT_S=60
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
for each in /run /tmp /var/log /var/lib {work}; do /bin/busybox mount -t tmpfs tmpfs $each; done
/bin/busybox mkdir -p /run/netns /dev/shm /var/lib/netprobe
/bin/busybox mount -t ext4 -o ro /dev/vdb {source}
ip link set lo up
export PYTHONPATH={site}:{source}:{source}/agents:{source}/tests
python3 {source}/{orders} /dev/vport0p1 {work}
echo "netprobe-hypervisor: its service has ended"
/bin/busybox poweroff -f
"""


def note(text: str) -> None:
    """Something for people."""
    print(f"hypervisor: {text}", file=sys.stderr, flush=True)


def module_order(tree: Path) -> list[Path]:
    """The wanted modules and what they need, each after what it needs."""
    (modules,) = (tree / "lib/modules").glob("*")
    run("depmod", "-b", str(tree), modules.name)
    needs = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        path, _, rest = line.partition(":")
        needs[path] = rest.split()
    by_name = {Path(path).stem.replace("-", "_"): path for path in needs}
    found: dict[str, None] = {}
    for name in MODULES:
        if (path := by_name.get(name)) is not None:
            for each in (*reversed(needs[path]), path):
                found[each] = None
    return [modules / path for path in found]


def write_initrd(tree: Path, target: Path) -> None:
    """Modules, busybox and the first program."""
    order = module_order(tree)
    files = {"init": (0o755, INIT.encode()), "bin/busybox": (0o755, (tree / "bin/busybox").read_bytes())}
    files |= {f"modules/{path.name}": (0o644, path.read_bytes()) for path in order}
    files["modules/order"] = (0o644, "".join(f"{path.name}\n" for path in order).encode())
    with target.open("wb") as file:
        for number, name in enumerate(("bin", "modules", "dev"), start=1):
            file.write(cpio_entry(number, name, 0o040755))
        for number, (name, (mode, data)) in enumerate(files.items(), start=10):
            file.write(cpio_entry(number, name, 0o100000 | mode, data))
        file.write(cpio_entry(1 << 20, "dev/console", 0o020600, device=(5, 1)))
        file.write(cpio_entry(0, "TRAILER!!!", 0))


def libraries(paths: Iterable[Path]) -> set[Path]:
    """What programs and extension modules are linked with."""
    found: set[Path] = set()
    done = subprocess.run(["ldd", *map(str, paths)], capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        found |= {Path(word) for word in line.split() if word.startswith("/") and not word.endswith(":")}
    return found


def put(path: Path, root: Path) -> None:
    """A file of this machine, under the same name, what it links to in its place."""
    target = root / path.relative_to("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        shutil.copy2(path.resolve(), target)


def fill(root: Path, tree: Path) -> None:
    """The base disk: this machine's Python and its packages, the tools, libraries, and where the rest is mounted."""
    left_out = shutil.ignore_patterns(*LEFT_OUT)
    standard = Path(json.__file__).parent.parent
    shutil.copytree(standard, root / standard.relative_to("/"), ignore=left_out, symlinks=True, dirs_exist_ok=True)
    packages = next(Path(path) for path in sys.path if path.endswith("site-packages"))
    (root / SITE[1:]).mkdir()
    for package in (found for pattern in PACKAGES for found in packages.glob(pattern)):
        target = root / SITE[1:] / package.name
        shutil.copytree(package, target, ignore=left_out) if package.is_dir() else shutil.copy2(package, target)
    interpreter = Path(sys.executable).resolve()
    put(interpreter, root)
    programs = [Path(found) for name in PROGRAMS if (found := shutil.which(name))]
    for program in programs:
        put(program, root)
    extensions = [*(root / SITE[1:]).rglob("*.so"), *(root / standard.relative_to("/")).rglob("*.so")]
    for library in sorted(libraries([interpreter, *programs, *extensions])):
        if not str(library).startswith(str(root)):
            put(library, root)
    for name in FILES:
        put(Path(name), root)
    shutil.copy2(tree / "bin/busybox", root / "bin/busybox")
    for name in APPLETS:
        (root / "bin" / name).symlink_to("busybox")
    for name in ("proc", "sys", "dev", "run", "tmp", "var/log", "var/lib", WORK[1:], SOURCE[1:], "usr/local/bin"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "usr/local/bin/python3").symlink_to(interpreter)
    start = root / "init"
    start.write_text(START.format(source=SOURCE, site=SITE, work=WORK, orders=ORDERS))
    start.chmod(0o755)
    wrapper = root / "usr/local/bin/netprobe"
    wrapper.write_text(WRAPPER)
    wrapper.chmod(0o755)
    compile_sources(root / standard.relative_to("/"), root / SITE[1:])
    note(f"made a base disk with {len(extensions)} extension modules")


def compile_sources(*folders: Path) -> None:
    """Byte code, for an emulated machine takes a minute to make it."""
    command = [sys.executable, "-m", "compileall", "-q", "-j", "0", "--invalidation-mode", "unchecked-hash"]
    subprocess.run([*command, *map(str, folders)], check=False, capture_output=True)


def make_disk(folder: Path, target: Path) -> None:
    """An ext4 file system with what is in a folder; without checksums, which its guest has no module for."""
    kib = sum((path.lstat().st_size + 4095) // 4096 * 4 + 1 for path in folder.rglob("*"))
    run("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal,^metadata_csum", "-m", "0", "-d", str(folder), str(target),
        f"{kib * 11 // 10 + 8192}k")  # fmt: skip


def key() -> str:
    """The name of a base: a hash of what goes into it, and of when this machine's tools were made."""
    digest = hashlib.sha256(sys.version.encode())
    for path in (Path(__file__), HERE / "build.py", ROOT / "requirements.lock"):
        digest.update(path.read_bytes())
    for found in filter(None, map(shutil.which, PROGRAMS)):
        status = Path(found).stat()  # a new Open vSwitch is another base
        digest.update(f"{found} {status.st_size} {status.st_mtime_ns} ".encode())
    return digest.hexdigest()[:16]


def base(folder: Path) -> Path:
    """The base image, made where there is none."""
    folder.mkdir(parents=True, exist_ok=True)
    image = folder / key()
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (image / "disk").is_file():
            return image
        with tempfile.TemporaryDirectory(prefix=".new-", dir=folder) as name:
            work = Path(name)
            for each in ("packages", "tree", "root/bin", "image"):
                (work / each).mkdir(parents=True)
            build.PACKAGES = ("busybox-static",)
            build.download(work / "packages")
            build.unpack(work / "packages", work / "tree")
            (kernel,) = (work / "tree/boot").glob("vmlinuz-*")
            extract_kernel(kernel, work / "image/kernel")
            write_initrd(work / "tree", work / "image/initrd")
            fill(work / "root", work / "tree")
            make_disk(work / "root", work / "image/disk")
            for old in folder.glob("*/"):
                shutil.rmtree(old, ignore_errors=True) if old.name != Path(name).name else None
            (work / "image").rename(image)
    return image


def source(target: Path) -> None:
    """The disk with netprobe as it is here, and what its mutation score needs."""
    with tempfile.TemporaryDirectory(prefix=".new-", dir=target.parent) as name:  # which goes with the lab
        folder = Path(name)
        ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
        for part in PARTS:
            if (ROOT / part).is_dir():
                shutil.copytree(ROOT / part, folder / part, ignore=ignore)
        compile_sources(folder)
        (folder / ORDERS).parent.mkdir(parents=True)
        shutil.copy2(ROOT / ORDERS, folder / ORDERS)
        make_disk(folder, target)


def main() -> int:
    """Make what is not there yet, and say where it is."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("source", type=Path, help="the disk with netprobe that is to be made")
    parser.add_argument("--image", type=Path, help="a folder with kernel, initrd and disk to use instead of our own")
    arguments = parser.parse_args()
    image = arguments.image or base(cache_folder() / "hypervisor-image")
    source(arguments.source)
    places = {name: str(image / name) for name in ("kernel", "initrd", "disk")}
    print(json.dumps({**places, "source": str(arguments.source)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
