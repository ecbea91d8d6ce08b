"""Where readings go: options and [influx] together, tokens from files and the environment, and what is refused."""

import stat

import pytest

from netprobe.cli.main import build_parser
from netprobe.cli.readings import readers_config, sink_config
from netprobe.errors import UsageError
from netprobe.plan.influx import InfluxPlan
from netprobe.plan.plans import parse_plan
from netprobe.service.collector_config import parse_file
from netprobe.service.sink import DEFAULT_FOLDER

PLAN = """
[influx]
url = "https://db:8086/"
bucket = "b/rp"
org = "ops"
[[session]]
src = "a"
dst = "b"
"""


@pytest.fixture(autouse=True)
def no_token(monkeypatch):
    for name in ("NETPROBE_INFLUX_TOKEN", "INFLUX_TOKEN"):
        monkeypatch.delenv(name, raising=False)


def args(*words):
    return build_parser().parse_args(["watch", "plan.toml", *words])


def secret(tmp_path, text="s3cret\n"):
    path = tmp_path / "token"
    path.write_text(text)
    path.chmod(stat.S_IRUSR)
    return str(path)


def test_nobody_asked():
    assert sink_config(args()) is None
    config = readers_config(args())
    assert (config.sink, config.listen) == (None, None)


def test_options_come_before_the_plan(tmp_path):
    written = parse_plan(PLAN, "plan.toml").influx
    config = sink_config(args(), written)
    assert (config.target.url, config.target.bucket, config.target.org) == ("https://db:8086", "b/rp", "ops")
    assert config.folder == DEFAULT_FOLDER
    config = sink_config(args("--influx", "http://other:1", "--influx-spool", str(tmp_path)), written)
    assert (config.target.url, config.target.bucket) == ("http://other:1", "b/rp")
    assert config.folder == tmp_path


def test_tokens_are_in_files_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("INFLUX_TOKEN", "theirs")
    assert sink_config(args("--influx", "http://db")).target.token == "theirs"
    monkeypatch.setenv("NETPROBE_INFLUX_TOKEN", "ours")
    assert sink_config(args("--influx", "http://db")).target.token == "ours"
    asked = args("--influx", "http://db", "--influx-token-file", secret(tmp_path))
    assert sink_config(asked).target.token == "s3cret"
    assert "s3cret" not in str(sink_config(asked))
    assert "s3cret" not in sink_config(asked).place.name


@pytest.mark.parametrize(
    "url",
    [
        "db:8086",
        "ftp://db",
        "http://",
        "http://user:pw@db",
        "http://db:99999",
        "http://db?x=1",
        "http://[::1",
        "http://my db",
    ],
)
def test_what_is_no_url_is_refused_and_passwords_in_it_too(url):
    with pytest.raises(UsageError) as refused:
        sink_config(args("--influx", url))
    assert "pw" not in str(refused.value)


def test_options_that_mean_nothing_alone_are_refused():
    with pytest.raises(UsageError, match="--influx-bucket"):
        sink_config(args("--influx-bucket", "b"))
    with pytest.raises(UsageError, match="--metrics-token-file"):
        readers_config(args("--metrics-token-file", "x"))


def test_a_token_file_must_hold_one(tmp_path):
    path = tmp_path / "token"
    for text in ("", "two\nlines"):
        path.write_text(text)
        with pytest.raises(UsageError, match="holds no token"):
            sink_config(args("--influx", "http://db", "--influx-token-file", str(path)))
    with pytest.raises(UsageError, match="cannot be read"):
        sink_config(args("--influx", "http://db", "--influx-token-file", str(tmp_path / "none")))


def test_a_page_for_others_needs_a_token_that_cannot_be_guessed(tmp_path):
    """By the live page's rules, and in words of this page's own options."""
    assert readers_config(args("--metrics", "127.0.0.1:9862")).listen == ("127.0.0.1", 9862)
    assert readers_config(args("--metrics", "[::1]:9862")).token == ""
    with pytest.raises(UsageError, match=r"--metrics 0\.0\.0\.0: .*--metrics-token-file"):
        readers_config(args("--metrics", "0.0.0.0:9862"))
    with pytest.raises(UsageError, match="6 characters"):
        readers_config(args("--metrics", "0.0.0.0:9862", "--metrics-token-file", secret(tmp_path)))
    good = secret(tmp_path, "0123456789abcdef\n")
    assert readers_config(args("--metrics", "0.0.0.0:9862", "--metrics-token-file", good)).token == "0123456789abcdef"


def test_plans_and_configurations_have_the_table_and_refuse_what_is_not_in_it():
    assert parse_plan(PLAN.replace("https://db:8086/", "http://db"), "p").influx == InfluxPlan(
        "http://db", "b/rp", "ops"
    )
    with pytest.raises(UsageError, match="buckets"):
        parse_plan(PLAN.replace("bucket =", "buckets ="), "p")
    # A plan travels: it must not choose a file that is sent to a server of its choice.
    with pytest.raises(UsageError, match="token_file"):
        parse_plan(PLAN.replace("org =", "token_file ="), "p")
    table = '[influx]\nurl = "http://db"\ntoken_file = "/etc/netprobe/token"\n[[host]]\nname = "hv1"\n'
    assert parse_file(table, "c").influx == InfluxPlan("http://db", token_file="/etc/netprobe/token")
    assert parse_file('[[host]]\nname = "hv1"\n', "c").influx is None


@pytest.mark.parametrize(
    "words",
    [
        ["run", "plan.toml", "--collector", "127.0.0.1:1"],
        ["trace", "a", "b", "--mtu"],
        ["serve", "--web", "127.0.0.1:0"],
    ],
    ids=lambda words: words[0],
)
def test_where_readings_cannot_go_they_are_refused(words):
    """A collector writes them itself; a sweep over sizes and the live page alone have none."""
    asked = build_parser().parse_args([*words, "--influx", "http://db"])
    with pytest.raises(UsageError, match="influx"):
        asked.call(asked)
