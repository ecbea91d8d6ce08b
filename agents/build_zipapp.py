"""Build the guest agent as one file: `python agents/build_zipapp.py`, or `make zipapp`.

The zipapp holds the agent and the netprobe modules that it imports, found by following import statements, and runs
with Python 3.11 and trio. The same sources give the same octets: fixed dates, modes and order.
"""  # noqa: INP001  a script beside the package that it packs

import argparse
import ast
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENTRY = "netprobe_agents.guest"
SOURCE_FOLDERS = (ROOT, ROOT / "agents")
ALLOWED_OUTSIDERS = frozenset({"trio"})
DEFAULT_TARGET = ROOT / "dist" / "netprobe-agent-guest.pyz"
MAX_BYTES = 2 << 20
FIXED_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip file can say
MAIN = f"import sys\n\nfrom {ENTRY} import main\n\nsys.exit(main())\n"


def find_source(module: str) -> Path | None:
    """The file of one of our modules, or None for somebody else's (or a name that is no module)."""
    relative = Path(*module.split("."))
    for folder in SOURCE_FOLDERS:
        for candidate in (folder / relative.with_suffix(".py"), folder / relative / "__init__.py"):
            if candidate.is_file():
                return candidate
    return None


def imports_of(source: Path) -> Iterator[str]:
    """Every module that a file may import, at its top or later; names imported from a package may be modules too."""
    for node in ast.walk(ast.parse(source.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source}: relative import"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def collect(entry: str) -> dict[str, Path]:
    """Name in the archive -> file, for `entry` and all of ours that it needs.

    Raises:
        SystemExit: it needs somebody else's package that a guest does not have.
    """
    files: dict[str, Path] = {}
    todo, seen = [entry], set()
    while todo:
        module = todo.pop()
        if module in seen:
            continue
        seen.add(module)
        source = find_source(module)
        if source is None:
            top = module.partition(".")[0]
            if top not in sys.stdlib_module_names | ALLOWED_OUTSIDERS | {"netprobe", "netprobe_agents"}:
                sys.exit(
                    f"build_zipapp: {module} is neither ours, nor the standard library's, nor trio: guests lack it"
                )
            continue
        folder = next(f for f in SOURCE_FOLDERS[::-1] if source.is_relative_to(f))
        files[source.relative_to(folder).as_posix()] = source
        parent = module.rpartition(".")[0]
        todo += [*imports_of(source), *([parent] if parent else [])]
    return files


def build(target: Path) -> Path:
    """Write the zipapp to `target`; returns it.

    Raises:
        SystemExit: it can't be built so that a guest can run it, or is too big.
    """
    contents = {name: source.read_bytes() for name, source in collect(ENTRY).items()} | {"__main__.py": MAIN.encode()}
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as file:
        file.write(b"#!/usr/bin/env python3\n")
        with zipfile.ZipFile(file, "w") as archive:
            for name in sorted(contents):
                info = zipfile.ZipInfo(name, FIXED_DATE)
                info.compress_type = zipfile.ZIP_DEFLATED
                info.external_attr = 0o644 << 16
                info.create_system = 3
                archive.writestr(info, contents[name], compresslevel=9)
    target.chmod(0o755)
    if (size := target.stat().st_size) > MAX_BYTES:
        sys.exit(f"build_zipapp: {target} has {size} octets, more than {MAX_BYTES}")
    return target


def main() -> int:
    """Build where the first argument says."""
    parser = argparse.ArgumentParser(description="Build the guest agent as one file.")
    parser.add_argument("target", nargs="?", type=Path, default=DEFAULT_TARGET)
    target = build(parser.parse_args().target)
    print(f"{target} {target.stat().st_size} octets")
    return 0


if __name__ == "__main__":
    sys.exit(main())
