"""Build the lab's guest image from Debian's packages: `python agents/guest-image/build.py`.

A kernel (Debian's for clouds) and an initramfs with its virtio drivers, a trimmed Python with trio, and the guest
agent's zipapp, unpacked and compiled. No network and no disk when it boots. It prints where they are, as JSON. An image
is kept by what goes into it (the agent, this script, init.py); Debian's versions are in its manifest, and `--fresh`
takes today's.
"""  # noqa: INP001  a script beside what it packs

import argparse
import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
KEPT_IMAGES = 3
STALE_S = 600.0
"""A snapshot is written in a second."""
META_KERNEL = "linux-image-cloud-amd64"
# In this order: each needs those before it.
DRIVERS = (
    "virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci",
    "failover", "net_failover", "virtio_net", "virtio_console",
)  # fmt: skip
PACKAGES = (
    "python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib", "libc6", "libssl3", "zlib1g", "libexpat1",
    "libffi8", "python3-trio", "python3-async-generator", "python3-attr", "python3-idna", "python3-outcome",
    "python3-sniffio", "python3-sortedcontainers",
)  # fmt: skip
LIBRARIES = "lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"
LEFT_OUT = (
    "test", "idlelib", "lib2to3", "tkinter", "ensurepip", "pydoc_data", "turtledemo", "distutils", "unittest",
    "sqlite3", "dbm", "curses", "xmlrpc", "wsgiref", "venv", "multiprocessing", "asyncio", "zoneinfo", "__phello__",
    "email", "xml", "http", "html", "turtle.py", "pdb.py", "pydoc.py", "doctest.py", "mailbox.py", "imaplib.py",
    "smtplib.py", "nntplib.py", "ftplib.py",
)  # fmt: skip
DEAD_EXTENSIONS = ("_test", "_xx", "xx", "_codecs_", "_curses", "_dbm", "_sqlite3", "nis", "ossaudiodev", "readline")
"""Extension modules that nobody here needs, or whose libraries are left out."""

DEAD_LIBRARIES = ("libmvec", "libexpatw", "libnss_", "libnsl", "libthread_db", "libBrokenLocale", "libpcprofile")

LZ4_MAGIC = b"\x02\x21\x4c\x18"
"""Debian's kernel for clouds is an LZ4 frame (the old kind) behind a small loader."""


def cache_folder() -> Path:
    """Where images are kept: NETPROBE_CACHE_DIR, XDG_CACHE_HOME, or the system's for root."""
    given = os.environ.get("NETPROBE_CACHE_DIR")
    if given:
        return Path(given)
    home = os.environ.get("XDG_CACHE_HOME")
    if home:
        return Path(home) / "netprobe"
    return Path("/var/cache/netprobe") if os.geteuid() == 0 else Path.home() / ".cache" / "netprobe"


def run(*command: str, cwd: Path | None = None) -> str:
    """A command's output; what it said when it fails, as this program's last word."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)
    except FileNotFoundError:
        sys.exit(f"guest-image: {command[0]} is not installed")
    if done.returncode:
        sys.exit(f"guest-image: {' '.join(command)} failed: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def zipapp(target: Path) -> Path:
    """The guest agent as one file."""
    spec = importlib.util.spec_from_file_location("build_zipapp", ROOT / "agents" / "build_zipapp.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    built: Path = module.build(target)
    return built


def key_of(agent: Path) -> str:
    """The name of an image: a hash of everything of ours that goes into it."""
    digest = hashlib.sha256()
    for path in (agent, HERE / "init.py", Path(__file__)):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def download(folder: Path) -> None:
    """Debian's packages, as they are today."""
    kernel = next(
        (word for word in run("apt-cache", "depends", META_KERNEL).split() if word.startswith("linux-image-")
         and word != META_KERNEL), ""
    )  # fmt: skip
    if not kernel:
        sys.exit(f"guest-image: apt does not know {META_KERNEL}: run apt-get update")
    packages = (kernel, *PACKAGES)
    command = ("apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", *packages)
    if subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode:
        run("apt-get", "update", "-q")  # the lists are older than what the mirror has
        run(*command, cwd=folder)


def unpack(packages: Path, target: Path) -> list[str]:
    """Unpack all packages into one tree; their names and versions."""
    debs = sorted(packages.glob("*.deb"))
    for deb in debs:
        run("dpkg", "-x", str(deb), str(target))
    return [deb.stem for deb in debs]


def extract_kernel(source: Path, target: Path) -> None:
    """The kernel without its loader where `lz4` is there to do it (it boots 1 s sooner), else as it is."""
    image = source.read_bytes()
    start = image.find(LZ4_MAGIC)
    if start > 0 and shutil.which("lz4"):
        done = subprocess.run(["lz4", "-dc"], input=image[start:], capture_output=True, check=False)
        if done.stdout[:4] == b"\x7fELF":  # lz4 complains of what follows the frame
            target.write_bytes(done.stdout)
            return
    target.write_bytes(image)


def fill(tree: Path, root: Path, agent: Path) -> None:
    """The guest's files, from the unpacked packages."""
    for folder in LIBRARIES:
        (root / folder).mkdir(parents=True, exist_ok=True)
        for library in sorted((tree / folder).glob("*.so.*")):
            if len(library.suffix) <= 3 and not library.name.startswith(DEAD_LIBRARIES):  # the name that is asked for
                shutil.copy2(library, root / folder / library.name)  # links become files
    for folder in ("dev", "proc", "sys", "tmp", "run", "usr/bin", "usr/lib/netprobe", "lib/modules", "lib64"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    shutil.copy2(tree / "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2", root / "lib64/ld-linux-x86-64.so.2")
    shutil.copy2(tree / "usr/bin/python3.11", root / "usr/bin/python3.11")
    for module in DRIVERS:
        (found,) = (tree / "lib/modules").glob(f"*/kernel/**/{module}.ko")
        shutil.copy2(found, root / "lib/modules" / found.name)
    (root / "lib/modules/order").write_text("\n".join(DRIVERS) + "\n")
    shutil.copytree(tree / "usr/lib/python3.11", root / "usr/lib/python3.11", ignore=shutil.ignore_patterns(*LEFT_OUT))
    for extension in (root / "usr/lib/python3.11/lib-dynload").iterdir():
        if extension.name.startswith(DEAD_EXTENSIONS):
            extension.unlink()
    shutil.copytree(
        tree / "usr/lib/python3/dist-packages",
        root / "usr/lib/python3/dist-packages",
        ignore=shutil.ignore_patterns("tests", "_tests", "*-info"),
    )
    run(sys.executable, "-m", "zipfile", "-e", str(agent), str(root / "usr/lib/netprobe"))
    shutil.copy2(HERE / "init.py", root / "init")
    (root / "init").chmod(0o755)
    compile_sources(root)


def compile_sources(root: Path) -> None:
    """Python's modules compiled by the Python that will run them, without their sources: half the memory."""
    program = (
        "import compileall, sys; "
        "sys.exit(not all([compileall.compile_dir(d, quiet=1, legacy=True, optimize=1, "
        "invalidation_mode=__import__('py_compile').PycInvalidationMode.UNCHECKED_HASH) for d in sys.argv[1:]]))"
    )
    folders = ("/usr/lib/python3.11", "/usr/lib/python3/dist-packages", "/usr/lib/netprobe")
    run("chroot", str(root), "/usr/bin/python3.11", "-IS", "-c", program, *folders)
    for folder in folders:
        for source in (root / folder[1:]).rglob("*.py"):
            source.unlink()
        for cache in (root / folder[1:]).rglob("__pycache__"):
            shutil.rmtree(cache)


def entries(root: Path) -> Iterator[tuple[str, Path]]:
    """Everything below a folder, folders before what is in them."""
    for path in sorted(root.rglob("*")):
        yield path.relative_to(root).as_posix(), path


def write_cpio(root: Path, target: Path) -> None:
    """An initramfs: a cpio archive of the kind "newc", uncompressed, so that it costs the guest no time."""
    with target.open("wb") as file:
        for number, (name, path) in enumerate(entries(root), start=1):
            kind = path.lstat().st_mode
            if stat.S_ISDIR(kind):
                file.write(cpio_entry(number, name, stat.S_IFDIR | 0o755))
            else:
                file.write(cpio_entry(number, name, stat.S_IFREG | stat.S_IMODE(kind), path.read_bytes()))
        file.write(cpio_entry(1 << 20, "dev/console", stat.S_IFCHR | 0o600, device=(5, 1)))
        file.write(cpio_entry(0, "TRAILER!!!", 0))
        file.write(b"\0" * (-file.tell() % 512))


def cpio_entry(number: int, name: str, mode: int, data: bytes = b"", *, device: tuple[int, int] = (0, 0)) -> bytes:
    """One file of a cpio archive (Linux's Documentation/driver-api/early-userspace/buffer-format.rst)."""
    octets = name.encode() + b"\0"
    fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(octets), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields) + octets
    return header + b"\0" * (-len(header) % 4) + data + b"\0" * (-len(data) % 4)


def build(image: Path, agent: Path) -> None:
    """Make an image; it is there whole or not at all."""
    began = time.monotonic()
    image.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".new-", dir=image.parent) as name:
        work = Path(name)
        for folder in ("packages", "tree", "root", "image"):
            (work / folder).mkdir()
        download(work / "packages")
        versions = unpack(work / "packages", work / "tree")
        (kernel,) = (work / "tree/boot").glob("vmlinuz-*")
        extract_kernel(kernel, work / "image/kernel")
        fill(work / "tree", work / "root", agent)
        write_cpio(work / "root", work / "image/initrd")
        seconds = round(time.monotonic() - began, 1)
        manifest = {"packages": versions, "built_s": seconds, "initrd_bytes": (work / "image/initrd").stat().st_size}
        (work / "image/manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
        shutil.rmtree(image, ignore_errors=True)
        (work / "image").rename(image)


def forget_old(folder: Path, kept: Path) -> None:
    """Remove all but the images that were used last, and what killed programs left half-made."""
    for half in (p for prefix in (".new-*", ".agent-*") for p in folder.glob(prefix)):  # the lock is ours
        shutil.rmtree(half, ignore_errors=True)
    for half in folder.glob("*/*.new"):
        if time.time() - half.stat().st_mtime > STALE_S:
            half.unlink(missing_ok=True)
    images = sorted((p for p in folder.iterdir() if (p / "manifest.json").is_file()), key=lambda p: -p.stat().st_mtime)
    for image in images[KEPT_IMAGES:]:
        if image != kept:
            shutil.rmtree(image, ignore_errors=True)


def main() -> int:
    """Build what is not there yet, and say where it is."""
    parser = argparse.ArgumentParser(description="Build the lab's guest image from Debian's packages.")
    parser.add_argument("--fresh", action="store_true", help="take Debian's packages of today, whatever is kept")
    arguments = parser.parse_args()
    folder = cache_folder() / "guest-image"
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with tempfile.TemporaryDirectory(prefix=".agent-", dir=folder) as name:
            agent = zipapp(Path(name) / "agent.pyz")
            image = folder / key_of(agent)
            is_new = arguments.fresh or not (image / "manifest.json").is_file()
            if is_new:
                build(image, agent)
            os.utime(image)
        forget_old(folder, image)
    print(json.dumps({"kernel": str(image / "kernel"), "initrd": str(image / "initrd"), "built": is_new}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
