"""Turns of tests in several workers: who runs beside whom, and that nobody who waits is forgotten."""

import fcntl
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.waiting import until
from support.workers import Turns, alone_tests


@pytest.fixture
def files(tmp_path):
    return tmp_path / "gate", tmp_path / "ground"


class Worker:
    """One worker's turns, and a thread that runs a test in them."""

    def __init__(self, files):
        self.turns = Turns(*files)
        self.is_running, self.may_end = threading.Event(), threading.Event()
        self.thread = None

    def start(self, *marks, then=None):
        self.thread = threading.Thread(target=self._run, args=(marks, then))
        self.thread.start()
        return self

    def _run(self, marks, then):
        around = self.turns.pytest_runtest_protocol(marked(marks), then and marked(then))
        next(around)
        self.is_running.set()
        self.may_end.wait()
        with pytest.raises(StopIteration):
            around.send(None)

    def end(self):
        self.may_end.set()
        self.thread.join()


def marked(marks):
    return SimpleNamespace(get_closest_marker=lambda name: name if name in marks else None)


@pytest.fixture
def workers(files):
    made = [Worker(files) for _ in range(3)]
    try:
        yield made
    finally:
        for worker in made:
            worker.may_end.set()
        for worker in made:
            if worker.thread:
                worker.thread.join()
            worker.turns.close()


def is_taken(path):
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def test_tests_run_beside_each_other(workers, files):
    first, second, third = workers
    first.start("system")
    second.start("system")
    third.start()
    for worker in workers:
        assert worker.is_running.wait(10)
    for worker in workers:
        worker.end()
    assert not any(map(is_taken, files))


def test_a_test_that_must_be_alone_waits_for_the_others_and_is_waited_for(workers, files):
    """The third comes while the second waits: it does not overtake, and neither do later ones."""
    first, second, third = workers
    first.start("system")
    assert first.is_running.wait(10)
    second.start("system", "alone")
    until(lambda: is_taken(files[0]))  # it waits for the ground, and holds the gate
    third.start()  # a unit test
    assert not second.is_running.is_set()
    first.end()
    assert second.is_running.wait(10)
    assert not third.is_running.is_set()
    second.end()
    assert third.is_running.wait(10)


def test_the_turn_is_kept_until_the_next_test_that_is_alone_and_not_longer(workers, files):
    """From one to the next nobody comes in between; before one that is not alone the ground is free."""
    first, *_ = workers
    alone = ("system", "alone")
    first.start(*alone, then=alone).end()
    assert is_taken(files[1])
    first.start(*alone, then=("system",)).end()
    assert not any(map(is_taken, files))


def test_what_is_marked_alone_is_known_by_name_whole_files_and_single_tests(tmp_path):
    """Of this project's own tests, too: who hands them out would else let them wait for each other."""
    texts = {
        "test_all.py": "pytestmark = [pytest.mark.system, pytest.mark.alone(reason='x')]\n\ndef test_x(): ...\n",
        "test_lines.py": "pytestmark = [\n    pytest.mark.system,\n    pytest.mark.alone(reason='x'),\n]\n",
        "test_one.py": "def test_y(): ...\n\n@pytest.mark.alone(reason='(x)')\n@other\ndef test_z(lab): ...\n",
    }
    folder = tmp_path / "tests" / "system"
    folder.mkdir(parents=True)
    for name, text in texts.items():
        (folder / name).write_text(text)
    paths = {f"tests/system/{name}" for name in ("test_all.py", "test_lines.py", "test_one.py::test_z")}
    assert alone_tests(tmp_path) == paths
    root = Path(__file__).parents[2]
    marks = sum(path.read_text().count("mark.alone(") for path in root.glob("tests/system/test_*.py"))
    assert len(alone_tests(root)) == marks
