"""What waits for a database that no program writes to any more is told of, and nothing of it is lost by that."""

import json

import pytest

from netprobe.errors import HostNotReadyError
from netprobe.host.spool import MIN_LIMIT_BYTES
from netprobe.model.metrics import Reading
from netprobe.service import doctor
from netprobe.service.sink import Sink, SinkConfig, _open_spools
from netprobe.service.spool_places import NOTE, left_behind
from netprobe.store.influx import InfluxTarget

FIRST_LIFE, SECOND_LIFE = "0" * 32, "1" * 32


def filled(folder, url, count):
    """Spools with so many batches, which their program has left."""
    config = SinkConfig(InfluxTarget(url, "b", token="s3cret"), folder, MIN_LIMIT_BYTES)
    spools = _open_spools(config, FIRST_LIFE)
    sink = Sink(config, spools, FIRST_LIFE)
    for n in range(count):
        sink.put([Reading("m", {}, {"n": n}, n)])
    return config, spools


def test_what_waits_where_no_program_is_is_told_with_its_database(tmp_path):
    """Not what a program has open, and not what is empty."""
    (gone, left), (_, open_still), (_, empty) = (
        filled(tmp_path, f"http://{name}:1", count) for name, count in (("old", 3), ("new", 2), ("done", 0))
    )
    for spool in left + empty:
        spool.close()
    (found,) = left_behind(tmp_path)
    assert (found.place, found.database, found.batches) == (gone.place, "http://old:1 (bucket b)", 3)
    assert found.size_bytes > 0
    assert found.since_ns > 10**18
    assert "s3cret" not in (gone.place / NOTE).read_text()
    assert [one.batches for one in left_behind(tmp_path)] == [3]  # looking takes nothing away
    again = _open_spools(gone, SECOND_LIFE)
    assert sum(spool.counters().waiting for spool in again) == 3
    for spool in again + open_still:
        spool.close()
    assert list(left_behind(tmp_path / "missing")) == []


def test_what_cannot_be_looked_at_is_not_called_empty(tmp_path):
    """Neither a folder of spools that is none, nor a spool that cannot be opened."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(HostNotReadyError, match="cannot be looked at: Not a directory"):
        list(left_behind(tmp_path / "file"))
    (tmp_path / "all" / "one" / "00" / "lock").mkdir(parents=True)
    with pytest.raises(HostNotReadyError, match="cannot be used"):
        list(left_behind(tmp_path / "all"))


def test_the_doctor_tells_of_them(tmp_path, monkeypatch):
    """A folder of an older netprobe, which has no note, too."""
    monkeypatch.setattr(doctor, "DEFAULT_FOLDER", tmp_path)
    assert doctor._readings() == "none wait"
    config, spools = filled(tmp_path, "http://old:1", 1)
    for spool in spools:
        spool.close()
    check = doctor._attempt("readings", doctor._readings, is_required=False, advice="write")
    assert not check.is_ok
    assert "1 batches" in check.detail
    assert "http://old:1 (bucket b)" in check.detail
    for text in ("{}", "no JSON", json.dumps([1])):
        (config.place / NOTE).write_text(text)
        assert "for some database" in doctor._attempt("readings", doctor._readings).detail
