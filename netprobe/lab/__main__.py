"""`python -m netprobe.lab`: the lab without the command line, for trying it out. JSON in, JSON out.

python -m netprobe.lab up
python -m netprobe.lab fault_set vm1.backend..vm2.backend delay_ns=300000 loss=0.02
"""

import ast
import json
import sys
from pathlib import Path

from netprobe.errors import NetprobeError
from netprobe.lab import control

COMMANDS = {
    f.__name__: f
    for f in (control.up, control.down, control.status, control.move, control.fault_set, control.fault_clear)
}


def main(argv: list[str]) -> int:
    """Call one function of netprobe.lab.control with words and name=value pairs."""
    if not argv or argv[0] not in COMMANDS:
        print(f"usage: python -m netprobe.lab {'|'.join(COMMANDS)} [WORD] [NAME=VALUE ...]", file=sys.stderr)
        return 2
    words = [word for word in argv[1:] if "=" not in word]
    options = {name: ast.literal_eval(value) for name, _, value in (w.partition("=") for w in argv[1:] if "=" in w)}
    if isinstance(options.get("config_path"), str):
        options["config_path"] = Path(options["config_path"])
    try:
        result = COMMANDS[argv[0]](*words, **options)
    except NetprobeError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(json.dumps(result.to_json(), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
