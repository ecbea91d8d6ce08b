"""Many frames at a rate, on a virtual clock: the rate is kept, bursts are bounded, a stop is noticed."""

from netprobe.inject.batches import send_in_batches

MS = 1_000_000


class Clock:
    """Time that passes by sleeping, and by sending."""

    def __init__(self, cost_ns=0):
        self.now_ns = 5 * MS
        self.cost_ns = cost_ns
        self.sent = []

    def clock(self):
        return self.now_ns

    def sleep(self, seconds):
        assert seconds > 0
        self.now_ns += round(seconds * 1e9)

    def send(self, number):
        self.now_ns += self.cost_ns
        self.sent.append(self.now_ns)
        return number + 1


def run(time, count, gap_ns, stopped=lambda: False):
    return list(send_in_batches(count, gap_ns, time.send, stopped=stopped, clock=time.clock, sleep=time.sleep))


def most_in_a_millisecond(times):
    return max(sum(start <= t < start + MS for t in times) for start in times)


def test_all_are_sent_in_order_and_at_the_rate():
    """10,000 a second: a second's worth takes a second, ten at a time."""
    time = Clock()
    assert run(time, 10_000, 100_000) == list(range(1, 10_001))
    assert abs(time.sent[-1] - time.sent[0] - 1_000 * MS) <= 2 * MS
    assert most_in_a_millisecond(time.sent) <= 11


def test_a_slow_schedule_is_kept_frame_by_frame():
    """Longer gaps than a millisecond: one frame at a time, at its time."""
    time = Clock()
    run(time, 4, 7 * MS)
    assert [t - time.sent[0] for t in time.sent] == [0, 7 * MS, 14 * MS, 21 * MS]


def test_never_more_than_64_frames_in_a_millisecond():
    """As fast as permitted, and when late: time that sending itself takes counts."""
    for time in (Clock(), Clock(cost_ns=5_000)):
        run(time, 1_000, 0)
        assert most_in_a_millisecond(time.sent) <= 65
    late = Clock()
    late.sleep = lambda seconds: setattr(late, "now_ns", late.now_ns + 50 * MS)
    run(late, 5_000, 10_000)
    assert most_in_a_millisecond(late.sent) <= 64


def test_a_stop_leaves_the_rest_unsent():
    """Asked before each batch."""
    time = Clock()
    times = run(time, 100, MS, stopped=lambda: len(time.sent) >= 3)
    assert times == [1, 2, 3, *[0] * 97]


def test_nothing_to_send_is_nothing():
    """No clock is waited for."""
    assert run(Clock(), 0, MS) == []
