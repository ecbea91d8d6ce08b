"""What the pages promise: commands that the command line takes, files that their readers take, fields that exist.

Nothing is run here; tests/system/test_demo.py runs what README shows.
"""

import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from support.results import segment
from support.runs import leg, session

from netprobe.cli import agent
from netprobe.cli.main import build_parser
from netprobe.model.contexts import HopContext
from netprobe.model.results import DelayBounds, Pacing
from netprobe.plan.allowlist import parse_allowlist
from netprobe.plan.plans import parse_plan
from netprobe.service.collector_config import parse_config

ROOT = Path(__file__).parents[2]
DEPLOYMENT = (ROOT / "docs" / "deployment.md").read_text()
PAGES = ("README.md", "docs/deployment.md", "docs/trust.md")
UNITS = sorted((ROOT / "agents").glob("*.service"))
VARIABLES = {"NETPROBE_LISTEN": "192.0.2.5:8620", "NETPROBE_COLLECTOR": "192.0.2.5:8620"}


def shell_lines(text):
    """What stands in a page's blocks, indented or fenced, one command a line."""
    blocks = re.findall(r"```\n(.*?)```", text, re.DOTALL) + re.findall(r"(?:^ {4}\S.*\n)+", text, re.MULTILINE)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.strip().removeprefix("$ ") for line in lines]


def commands(text):
    """The words of every netprobe command that is written out in full."""
    for line in shell_lines(text):
        words = shlex.split(line, comments=True) if re.match(r"(\S*/)?netprobe [a-z]", line) else []
        if words and not re.search(r"\[|\.\.\.|…|[a-z]\|[a-z]", line.partition("#")[0]):
            yield words[1:]


def parse(words):
    """As the command line does; raises where it does not take them."""
    if words[:2] == ["agent", "vswitch"]:
        return agent._parser().parse_args(words[2:])
    return build_parser().parse_args(words)


def options(parser):
    return {o for action in parser._actions for o in action.option_strings if o.startswith("--") and o != "--help"}


def subparser(*names):
    parser = build_parser()
    for name in names:
        parser = next(a.choices[name] for a in parser._actions if isinstance(a.choices, dict))
    return parser


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_is_one_that_the_command_line_takes(page):
    """Options that were renamed, and commands that are gone, show here."""
    found = list(commands((ROOT / page).read_text()))
    assert found
    for words in found:
        parse(words)


def test_the_examples_of_the_deployment_page_are_the_files_in_agents():
    """Both are taken by their readers, and are the same but for the heading of the file."""
    blocks = re.findall(r"```toml\n(.*?)```", DEPLOYMENT, re.DOTALL)
    collector, allowlist, plan = blocks
    for name, block in (("collector.toml", collector), ("allowlist.toml", allowlist)):
        shipped = (ROOT / "agents" / name).read_text().splitlines(keepends=True)
        assert "".join(line for line in shipped if not line.startswith("#")) == block
    topology = parse_config(collector, "page")
    assert ([h.name for h in topology.hosts], topology.ovn is None) == (["hv1", "hv2"], False)
    assert parse_allowlist(allowlist, "page").ports == ("web-*", "probe-*")
    assert [s.src for s in parse_plan(plan, "page").sessions] == ["probe-hv1", "web-1"]


@pytest.mark.parametrize("unit", UNITS, ids=lambda u: u.name)
def test_a_unit_starts_what_there_is_and_the_page_tells_how_to_install_it(unit):
    """Its command is taken, its variables are in the page, and the page names it."""
    text = unit.read_text()
    assert unit.name in DEPLOYMENT
    for variable in re.findall(r"\$\{(\w+)\}", text):
        assert variable in DEPLOYMENT or f"Environment={variable}=" in text
    command = re.search(r"^ExecStart=(.*)$", text, re.MULTILINE)[1]
    words = shlex.split(re.sub(r"\$\{(\w+)\}", lambda m: VARIABLES.get(m[1], "hv1"), command))
    if words[0].endswith("/netprobe"):
        parse(words[1:])
    else:
        assert any(name in command for name in ("bypass-nic", "netprobe-agent-guest.pyz"))
    assert "CapabilityBoundingSet=" in text or "bypass-nic" in command


@pytest.mark.parametrize(
    "parser", [agent._parser(), subparser("serve"), subparser("run")], ids=["agent vswitch", "serve", "run"]
)
def test_the_deployment_page_tells_of_every_option_of_the_programs(parser):
    """A new option is not forgotten; those that every command has are told of elsewhere."""
    assert options(parser) - {"--json", "--allow-change"} <= set(re.findall(r"--[a-z-]+", DEPLOYMENT))


def keys_of(value):
    """All keys in a document, at any depth."""
    if isinstance(value, dict):
        return set(value).union(*(keys_of(v) for v in value.values()))
    return set().union(*(keys_of(v) for v in value)) if isinstance(value, list) else set()


def test_every_field_of_a_result_is_on_the_page_about_json():
    """A field that was added is documented: docs/json.md is the contract."""
    bounds = DelayBounds((1, 2), (1, 2), (1, 2), (1, 2), (1, 2))
    forward = replace(leg(10, 10), segments=(replace(segment(1_000), clock_error_ns=1, delay_bounds=bounds),))
    one = replace(
        session("a", forward, leg(10, 10)),
        pacing=Pacing(1, 2, 3),
        contexts=(
            {"point": "a", "leg": "forward", "direction": "in", **HopContext(None, None).to_json(), "records": 1},
        ),
        epoch=dict.fromkeys(("number", "of", "first_seq", "end_seq", "because", "followed_after_ms")),
    )
    page = (ROOT / "docs" / "json.md").read_text()
    assert {key for key in keys_of(one.to_json()) if f"`{key}`" not in page} == set()


def test_every_counter_of_a_result_is_on_the_page_about_json():
    """Those that settling names, and those that a collector counts of what agents deliver."""
    page = (ROOT / "docs" / "json.md").read_text()
    settling = (ROOT / "netprobe" / "service" / "settling.py").read_text()
    block = settling[settling.index("def _counters") :]
    names = re.findall(r'^ {8}"(\w+)":', block[: block.index("\n\n\n")], re.MULTILINE)
    kept = (ROOT / "netprobe" / "service" / "kept_run.py").read_text()
    names += [f"refused_{name}" for name in re.findall(r'_refuse\("(\w+)"\)', kept)]
    assert len(names) > 10
    assert [name for name in names if f"`{name}`" not in page] == []
