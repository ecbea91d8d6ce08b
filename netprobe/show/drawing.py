"""The path of one session as a line of points, for terminals: below each segment its median delay and its loss.

Knows the JSON documents of docs/json.md only. Side by side where there is room, one below the other where there is not;
letters and dashes where the output cannot show lines.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from netprobe.show.tables import Document, duration, percent

GAP = 2
LEAST = 12  # columns of a segment's line


@dataclass(frozen=True, slots=True)
class Signs:
    """What is drawn with."""

    point: str
    line: str
    lossy: str
    dead: str
    down: str


LINES = Signs("●", "─", "━", "╌", "│")
LETTERS = Signs("o", "-", "=", ".", "|")


def _signs(out: Console) -> Signs:
    return LINES if out.is_terminal and out.encoding.startswith("utf") else LETTERS


def _chain(segments: Sequence[Document]) -> list[Document]:
    """Neighbours, from the first point on; where nobody looked in between, a wider span instead of what it spans."""
    found: list[Document] = []
    wide: list[Document] = []
    for segment in segments:
        is_next = not found or found[-1]["to"] == segment["from"]
        (found if is_next else wide).append(segment)
    for span in wide:
        starts = [i for i, x in enumerate(found) if x["from"] == span["from"]]
        ends = [i + 1 for i, x in enumerate(found) if x["to"] == span["to"]]
        if starts and ends and all(x["delay_ns"] is None and not x["lost"] for x in found[starts[0] : ends[0]]):
            found[starts[0] : ends[0]] = [span]
    return found


def _style(segment: Document) -> str:
    if segment["lost"]:
        return "bold yellow" if segment["received"] else "bold red"
    return "green" if segment["received"] else "dim"


def _sign(segment: Document, signs: Signs) -> str:
    if segment["lost"]:
        return signs.lossy if segment["received"] else signs.dead
    return signs.line if segment["received"] else signs.dead


def _delay(segment: Document) -> str:
    return duration(segment["delay_ns"]["p50"]) if segment["delay_ns"] else "-"


def _loss(segment: Document) -> str:
    if not segment["lost"]:
        return ""
    return f"{segment['lost']} lost ({percent(segment['loss_ratio'])})"


def draw_path(out: Console, session: Document) -> None:
    """Draw a session's forward leg.

    Args:
        out: where.
        session: its document.
    """
    chain = _chain(session["segments"])
    if not chain:
        return
    signs = _signs(out)
    drawn = _beside(chain, signs)
    if max(line.cell_len for line in drawn) > out.width:
        drawn = _below(chain, signs)
    for line in drawn:
        out.print(line, no_wrap=True, crop=False)


def _beside(chain: Sequence[Document], signs: Signs) -> list[Text]:
    """Three lines: names of points, points and segments, what was lost."""
    names, line, below = Text("  "), Text("  "), Text("  ")
    for segment in chain:
        name, word, loss = segment["from"], f" {_delay(segment)} ", _loss(segment)
        width = max(len(name) + GAP, len(loss) + GAP + 1, len(word) + 6, LEAST)
        names.append(name.ljust(width))
        line.append(signs.point)
        left = (width - 1 - len(word)) // 2
        style = _style(segment)
        line.append(_sign(segment, signs) * left, style).append(word)
        line.append(_sign(segment, signs) * (width - 1 - left - len(word)), style)
        below.append(loss.center(width), style)
    names.append(chain[-1]["to"])
    line.append(signs.point)
    below.rstrip()
    return [names, line] + ([below] if below.plain else [])


def _below(chain: Sequence[Document], signs: Signs) -> list[Text]:
    """Two lines a segment."""
    drawn = []
    for segment in chain:
        drawn.append(Text(f"  {signs.point} {segment['from']}"))
        words = "  ".join(filter(None, (_delay(segment), _loss(segment))))
        drawn.append(Text("  ").append(signs.down, _style(segment)).append(f"   {words}"))
    return [*drawn, Text(f"  {signs.point} {chain[-1]['to']}")]
