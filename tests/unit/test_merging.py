"""Sessions of one sender as one order: nothing is lost, mixed up or sent out of time."""

from dataclasses import replace

import numpy as np
import pytest
from support.clouds import topology

from netprobe.plan.mesh import compile_plan
from netprobe.plan.plans import parse_plan
from netprobe.service import merging
from netprobe.service.merging import orders_of
from netprobe.service.prepare import prepare_run


def prepared(text):
    cloud = replace(topology(), guests=topology().guests[:3])
    plan = compile_plan(parse_plan(text, "p"), cloud).plan
    return prepare_run(plan, cloud, lambda *args: range(61_000, 61_000 + args[-1]))


def session(src, dst, **keys):
    lines = "".join(f"{k} = {v!r}\n" for k, v in keys.items())
    return f'[[session]]\nname = "{src}{dst}{len(lines)}"\nsrc = "{src}"\ndst = "{dst}"\n{lines}'


def test_flows_are_one_stream_in_the_order_in_which_they_are_due():
    """Sixteen flows: one order; each flow finds its own frames, times and results again."""
    sessions = prepared(session("vm1", "vm2", flows=16, count=5, rate=100))
    (order,) = orders_of(sessions)
    assert order.members == sessions
    assert (np.diff(order.due_ns) >= 0).all()
    assert len(order.frames) == 80
    assert order.frames.flags.c_contiguous
    for one, rows, due in zip(sessions, order.rows, order.shares(order.due_ns), strict=True):
        assert (order.frames[rows] == one.block.frames).all()
        assert (due == one.due_ns).all()
    assert sorted(np.concatenate(order.rows).tolist()) == list(range(80))


def test_what_differs_in_shape_or_sender_is_another_order():
    """Another size, another protocol, another guest; packet-out each by itself."""
    text = session("vm1", "vm2") + session("vm1", "vm3", count=7) + session("vm1", "vm2", size=200)
    text += session("vm1", "vm2", proto="icmp") + session("vm3", "vm2", rate=7)
    text += session("vm1", "vm3", vantage="vswitch", count=3) + session("vm1", "vm2", vantage="vswitch")
    orders = orders_of(prepared(text))
    assert [len(order.members) for order in orders] == [2, 1, 1, 1, 1, 1]
    assert {m.target.name for m in orders[0].members} == {"vm2", "vm3"}
    assert orders[0].t1_offset == orders[0].members[1].block.t1_offset is not None
    assert all(len({m.sender.name for m in order.members}) == 1 for order in orders)


def test_a_single_session_is_sent_as_it_is():
    """No copy of its frames."""
    (one,) = prepared(session("vm1", "vm2"))
    (order,) = orders_of([one])
    assert order.frames is one.block.frames
    assert order.due_ns is one.due_ns
    assert order.shares(one.due_ns)[0].tolist() == one.due_ns.tolist()


@pytest.mark.parametrize("most", [1, 3_000, 10_000])
def test_an_order_is_never_more_than_a_message_holds(monkeypatch, most):
    """What does not fit goes into a further order; a session is never split."""
    monkeypatch.setattr(merging, "MAX_ORDER_BYTES", most)
    sessions = prepared(session("vm1", "vm2", flows=6, count=5))
    orders = orders_of(sessions)
    assert [one for order in orders for one in order.members] == list(sessions)
    assert all(order.frames.nbytes <= most or len(order.members) == 1 for order in orders)
