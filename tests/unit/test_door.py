"""The collector's door: who knocks too often waits, nobody takes all the room, and nobody fills a log."""

import trio
import trio.testing

from netprobe.service.door import KNOCKS_AT_ONCE, LINES_AT_ONCE, MAX_HANDSHAKES, Door, LineLimit


def test_an_address_that_knocks_too_often_waits_and_others_do_not():
    """A hundred at once, twenty a second then; a /64 is one address."""
    door = Door()
    assert all(door.knock("192.0.2.1", 0) for _ in range(KNOCKS_AT_ONCE))
    assert not door.knock("192.0.2.1", 0)
    assert door.knock("192.0.2.2", 0)
    assert door.knock("192.0.2.1", 10**9)
    assert [door.knock(f"2001:db8::{i:x}", 0) for i in range(KNOCKS_AT_ONCE + 1)].count(False) == 1
    assert door.knock("2001:db8:0:1::1", 0)


def test_the_oldest_handshake_of_the_busiest_address_makes_room():
    """Whoever fills the room loses it; somebody else keeps his place."""

    async def main():
        door, cut = Door(), []

        async def shake(address, number):
            with door.handshake(address) as scope:
                await trio.sleep_forever()
            if scope.cancelled_caught:
                cut.append((address, number))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(shake, "192.0.2.2", 0)
            for i in range(MAX_HANDSHAKES + 4):
                nursery.start_soon(shake, "192.0.2.1", i)
                await trio.lowlevel.checkpoint()
            await trio.testing.wait_all_tasks_blocked()
            assert len(cut) == 5
            assert {address for address, _ in cut} == {"192.0.2.1"}
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_penalties_grow_and_are_forgiven():
    """1, 2, 4 ... 16 s; a minute of peace, and it begins anew."""
    door, now = Door(), 0
    lasted = []
    for _ in range(7):
        door.strike("mallory", now)
        lasted.append(door.stays_outside_ns("mallory", now) // 10**9)
        now += lasted[-1] * 10**9
        assert not door.stays_outside_ns("mallory", now)
    assert lasted == [1, 2, 4, 8, 16, 16, 16]
    door.strike("mallory", now + 100 * 10**9)
    assert door.stays_outside_ns("mallory", now + 100 * 10**9) == 10**9
    assert not door.stays_outside_ns("somebody", now)


def test_nobody_fills_a_log():
    """Forty lines at once about one, then one a second, which says how many are missing; others' lines are not hit."""
    lines = LineLimit()
    said = [lines.admit("mallory", "hello", 0) for _ in range(100)]
    assert said.count(None) == 100 - LINES_AT_ONCE
    assert lines.admit("hv1", "hello", 0) == "hello"
    assert lines.admit("mallory", "hello", 10**9) == f"hello ({100 - LINES_AT_ONCE} lines about mallory were left out)"
