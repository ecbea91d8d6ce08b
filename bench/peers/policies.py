"""Policies of any size, for benchmarks: each guest has a group of its own, which trusts some of the others."""

_OUT = '[[group]]\nname = "out"\n[[group.rule]]\ndirection = "egress"'


def policy_text(guests: int, rules: int) -> str:
    """A policy as `netprobe lab up --config` and `netprobe verify` read it.

    Args:
        guests: how many; each is in a group of its own, and in one that lets everything out.
        rules: how many in all groups together; at least one more than guests.
    """
    each, more = divmod(rules - 1, guests)  # one rule lets everything out
    lines = [_OUT]
    for number in range(guests):
        lines.append(f'[[group]]\nname = "g{number}"')
        lines += [_ingress(number, index, guests) for index in range(each + (number < more))]
    lines += [f'[[guest]]\nname = "vm{number + 1}"\ngroups = ["out", "g{number}"]' for number in range(guests)]
    return "\n".join(lines) + "\n"


def _ingress(number: int, index: int, guests: int) -> str:
    kinds = (
        f'protocol = "tcp"\nport = {1000 + 17 * index + number}',
        f'protocol = "udp"\nport = "{20000 + 40 * index}-{20000 + 40 * index + 1 + number % 7}"',
        f'protocol = "tcp"\nport = {30000 + index}\nremote_group = "g{(number + index) % guests}"',
        f'protocol = "tcp"\nport = {40000 + index}\nethertype = "ipv4"\nremote_prefix = "10.0.0.{4 * (index % 12)}/30"',
        f'protocol = "udp"\nport = {50000 + index}\nethertype = "ipv6"',
    )
    return f'[[group.rule]]\ndirection = "ingress"\n{kinds[index % len(kinds)]}'
