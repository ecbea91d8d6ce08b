"""What a terminal shows and a pipe does not: the drawn path, and the table of a run while it lasts."""

import io

import pytest
from rich.console import Console
from support.pages import session, with_unseen_point

from netprobe.model.progress import SessionProgress
from netprobe.show.drawing import draw_path
from netprobe.show.many import print_result
from netprobe.show.progress import MOST_ROWS, drawn, run_table


def terminal(width=120, *, is_terminal=True):
    file = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="")
    return Console(file=file, force_terminal=is_terminal, width=width, markup=False, highlight=False, emoji=False)


def text_of(out):
    out.file.flush()
    return out.file.buffer.getvalue().decode()


def drawing(*, lost, **kind):
    out = terminal(**kind)
    draw_path(out, session("vm1", "vm2", lost=lost).to_json())
    return text_of(out)


def test_a_pipe_gets_letters_and_no_control_characters():
    """The same picture in ASCII; nothing but text and ends of lines."""
    text = drawing(lost=20, is_terminal=False)
    assert text.isascii()
    assert all(c.isprintable() or c == "\n" for c in text)
    names, line, below = text.splitlines()
    assert names.split() == ["vm1.guest", "vm1.backend", "vm2.backend", "vm2.guest"]
    for name in names.split():
        assert line[names.index(name)] == "o"
    assert line.count("30.0 us") == 3
    assert "=" in line
    assert below.strip() == "20 lost (2.00 %)"


def test_a_terminal_gets_lines_and_colours():
    """What lost is drawn thick, what is dead broken."""
    assert "●" in drawing(lost=0)
    assert "━" not in drawing(lost=0)
    assert "━" in drawing(lost=20)
    assert "╌" in drawing(lost=1000)
    assert "\x1b[" in drawing(lost=20)


def test_a_narrow_terminal_gets_it_one_below_the_other():
    """No name is cut."""
    lines = drawing(lost=20, width=40, is_terminal=False).splitlines()
    assert [line.split()[1] for line in lines[::2]] == ["vm1.guest", "vm1.backend", "vm2.backend", "vm2.guest"]
    assert lines[3].split(maxsplit=1)[1].strip() == "30.0 us  20 lost (2.00 %)"


def test_a_point_where_nobody_looked_is_spanned():
    """What was lost across it is drawn, not two segments that look fine."""
    out = terminal(is_terminal=False)
    draw_path(out, with_unseen_point(session("vm1", "vm2", lost=20), 20).to_json())
    names, line, below = text_of(out).splitlines()
    assert names.split() == ["vm1.guest", "vm1.backend", "vm2.backend", "vm2.guest"]
    assert "=" in line
    assert below.strip() == "20 lost (2.00 %)"


def test_the_path_is_drawn_for_one_session_alone():
    """Of many there would be no end of pictures."""
    one, many = terminal(170, is_terminal=False), terminal(170, is_terminal=False)
    document = session("vm1", "vm2").to_json()
    print_result(one, document)
    print_result(many, {"sessions": [document, document]})
    assert "o-" in text_of(one)
    assert "o-" not in text_of(many)


def test_a_name_is_no_markup():
    """Brackets are text."""
    out = terminal(is_terminal=False)
    draw_path(out, session("[red]vm[/red]", "vm2").to_json())
    assert "[red]vm[/red].guest" in text_of(out)


def test_the_table_of_a_run_is_for_terminals_and_is_gone_in_the_end():
    """Without one there is none; with one it shows what is outstanding, and leaves nothing."""
    with run_table(terminal(is_terminal=False)) as none:
        assert none is None
    out = terminal()
    with run_table(out) as table:
        table.update([SessionProgress("web", "vm1", "vm2", planned=100, due=50, arrived=20)])
        assert "20 of 50 probes that are due have arrived, 100 are planned" in text_of(out)
    assert text_of(out).endswith("\x1b[2K")  # the last thing is that its lines are erased


@pytest.mark.parametrize("count", [1, MOST_ROWS, MOST_ROWS + 1, 10_000])
def test_of_many_paths_those_are_shown_of_which_most_is_outstanding(count):
    """And how many there are besides."""
    rows = [SessionProgress(f"s{i}", "[b]a", "b", planned=100, due=50, arrived=50 - i % 50) for i in range(count)]
    out = terminal(is_terminal=False)
    out.print(drawn(rows))
    text = text_of(out)
    assert text.count("[b]a -> b") == min(count, MOST_ROWS)
    assert ("more paths" in text) == (count > MOST_ROWS)
    if count == 10_000:
        assert "s49:" in text
