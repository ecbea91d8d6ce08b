"""Whose vring a record is of, and how long nobody can say it: a watch with a ring and a switch of our own."""

import os
import struct
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from netprobe.errors import HostNotReadyError
from netprobe.host.process import start_ticks
from netprobe.model.observations import Blind
from netprobe.observe import vring
from netprobe.observe.vring import VringPlace, VringWatch

A, B = "/a", "/b"
HOUR_NS = 3600 * 10**9


class Decoding:
    """Writes down which records it was given."""

    def __init__(self, point, fed):
        self.point, self.fed, self.tally, self.dropped = point, fed, self, 0

    def feed(self, _buffer, _offsets, lengths, _t_ns, _direction):
        self.fed += [(self.point, int(length)) for length in lengths]
        return []


class Switch:
    """Ring, programs and memory of a switch.

    Attributes:
        now: by number, whose it is.
        waiting: records in the ring.
        meanwhile: what happens after the ring's end was read, before it is asked whose is whose; once.
        while_decoding: what happens before the counters are read.
    """

    def __init__(self, now):
        self.now, self.waiting, self.lost = dict(now), [], 0
        self.meanwhile = self.while_decoding = lambda: None

    def come(self, device, number):
        """A record; how much was captured of it is its name."""
        self.waiting.append(struct.pack("=qIIHHB3x", time.monotonic_ns(), device, 0, 0, number, 0))

    def sockets(self, _library, wanted):
        return {device: path for device, path in self.now.items() if path in wanted}

    @contextmanager
    def records(self):
        data = np.frombuffer(b"".join(self.waiting), np.uint8)
        starts = np.arange(len(self.waiting), dtype=np.int64) * vring.EVENT_HEADER_BYTES
        self.waiting, act, self.meanwhile = [], self.meanwhile, lambda: None
        act()
        yield data, starts

    def per_cpu_sums(self, _name):
        self.while_decoding()
        return [0, 0, 0, 0, self.lost, 0]

    def close(self):
        pass


@pytest.fixture
def watching(monkeypatch):
    """Makes a switch and its watch, and the list of (point, record) that it gave to decodings; A is point 1, B 2."""

    def made(now, paths=(A, B)):
        switch, fed = Switch(now), []

        def attach(watch):
            own = switch.sockets(None, watch._decodings)
            watch._look = vring._Look(time.time_ns(), time.time_ns(), own, own)
            return vring._Attached(os.getpid(), start_ticks(os.getpid()), None, switch, switch)

        monkeypatch.setattr(vring, "device_sockets", switch.sockets)
        monkeypatch.setattr(VringWatch, "_attach", attach)
        decodings = {path: Decoding(number, fed) for number, path in enumerate((A, B), 1) if path in paths}
        return switch, VringWatch(VringPlace(Path("x"), HOUR_NS), (), decodings), fed

    return made


def blind(watch):
    return {each.point: each for each in watch.drain() if isinstance(each, Blind)}


def test_records_are_their_ports_and_those_of_others_nobodys(watching):
    switch, watch, fed = watching({0: A, 1: B})
    for device, number in ((0, 10), (1, 11), (2, 12)):
        switch.come(device, number)
    assert blind(watch) == {}
    assert fed == [(1, 10), (2, 11)]


def test_what_came_between_two_looks_at_a_number_that_changed_hands_is_nobodys(watching):
    switch, watch, fed = watching({0: A, 1: B})
    switch.come(0, 10)
    switch.now = {0: B, 1: A}
    assert blind(watch).keys() == {1, 2}
    switch.come(0, 11)
    assert blind(watch) == {}
    assert fed == [(2, 11)]


def test_a_record_that_came_before_a_number_changed_hands_is_not_the_next_owners_a_drain_later(watching):
    """After the ring's end was read, before it was asked whose is whose."""
    switch, watch, fed = watching({0: A})

    def meanwhile():
        switch.come(0, 10)
        switch.now = {0: B}

    switch.come(0, 9)
    switch.meanwhile = meanwhile
    found = blind(watch)
    assert found.keys() == {1, 2}
    came_ns = time.time_ns()
    assert all(each.end_ns <= came_ns for each in found.values())
    assert blind(watch) == {}
    assert fed == []
    switch.come(0, 11)
    watch.drain()
    assert fed == [(2, 11)]


def test_a_guest_that_left_keeps_the_records_that_came_before(watching):
    """Those that were in the ring, and those that came while it was read; what comes later is nobody's."""
    switch, watch, fed = watching({0: A})

    def meanwhile():
        switch.come(0, 11)
        switch.now = {}

    switch.come(0, 10)
    switch.meanwhile = meanwhile
    assert blind(watch) == {}
    assert blind(watch) == {}
    assert fed == [(1, 10), (1, 11)]
    switch.come(0, 12)
    watch.drain()
    assert fed == [(1, 10), (1, 11)]


def test_a_port_that_is_added_on_anothers_number_gets_none_of_its_records(watching):
    switch, watch, fed = watching({0: A}, paths=(A,))
    switch.come(0, 10)
    switch.now = {0: B}
    watch.add(B, Decoding(2, fed))
    assert blind(watch).keys() == {1, 2}
    switch.come(0, 11)
    watch.drain()
    assert fed == [(2, 11)]


def test_a_port_that_is_added_after_the_time_is_over_is_an_error(watching, monkeypatch):
    """Silence there would be taken for loss."""
    _, watch, fed = watching({0: A}, paths=(A,))
    watch._until_ns = 0
    watch.drain()
    with pytest.raises(HostNotReadyError, match="may stay for"):
        watch.add(B, Decoding(2, fed))
    assert watch.points == {1}


def test_what_the_ring_had_no_room_for_while_it_was_read_is_within_the_blind_time(watching):
    """The counters are read after the ring, and what they count came before that."""
    switch, watch, _ = watching({0: A, 1: B})
    lost_ns = []

    def lose():
        switch.lost = 7
        lost_ns.append(time.time_ns())

    switch.while_decoding = lose
    found = blind(watch)
    assert found.keys() == {1, 2}
    assert all(each.start_ns <= lost_ns[0] <= each.end_ns for each in found.values())
