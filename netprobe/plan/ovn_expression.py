"""OVN's match expressions (ovn-sb(5), Logical_Flow, `match`): text to a tree. Pure.

    expression = term | term ("&&" term)… | term ("||" term)…       the two do not mix without parentheses
    term       = ["!"] ( "(" expression ")" | comparison | name | "0" | "1" )

`Reader` gives trees in which nothing is negated: `!` is carried inward, as OVN does before it looks at prerequisites,
so that `!(tcp.dst == 80)` is TCP to another port, and not "anything but TCP to port 80".
"""

import re
from dataclasses import dataclass

MAX_DEPTH = 100
"""OVN's own limit on parentheses is of this order; Python's recursion must not end first."""

_TOKEN = re.compile(
    r"""\s+ | //[^\n]* | /\*.*?\*/
      | (?P<text>"(?:[^"\\]|\\.)*")
      | (?P<set>[$@][A-Za-z0-9_.]+)
      | (?P<sign>&&|\|\||==|!=|<=|>=|[<>!(){},])
      | (?P<word>[A-Za-z0-9_.:]+(?:/[A-Za-z0-9.:]+|\[\d+(?:\.\.\d+)?\])?)""",
    re.VERBOSE | re.ASCII,
)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*(?:\[\d+(?:\.\.\d+)?\])?", re.ASCII)
_RELATIONS = {"==": "==", "!=": "!=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}
"""Each with what it is when its sides change places."""
_SIGNS = frozenset({*_RELATIONS, "&&", "||", "!", "(", ")", "{", "}", ","})
_OPPOSITES = {"==": "!=", "!=": "==", "<": ">=", ">=": "<", ">": "<=", "<=": ">"}


class ExpressionError(ValueError):
    """A text is no match expression."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """`name relation constants`; a name alone is `name == 1`, negated `name != 1`.

    Attributes:
        relation: "==", "!=", "<", "<=", ">" or ">=".
        constants: as written: numbers, addresses, `"texts"`, `$address_set`, `@port_group`. "==" asks whether one of
            them fits, "!=" whether none does.
        is_bare: the name alone.
    """

    name: str
    relation: str
    constants: tuple[str, ...]
    is_bare: bool = False

    def text(self) -> str:
        """As one would write it."""
        if self.is_bare:
            return self.name if self.relation == "==" else f"!{self.name}"
        value = self.constants[0] if len(self.constants) == 1 else f"{{{', '.join(self.constants)}}}"
        return f"{self.name} {self.relation} {value}"


@dataclass(frozen=True, slots=True)
class Junction:
    """Several expressions: all of them hold, or any. All of none holds, any of none does not."""

    is_all: bool
    parts: "tuple[Node, ...]"


Node = Comparison | Junction


def parse_expression(text: str) -> Node:
    """The tree of a match expression, without negations.

    Raises:
        ExpressionError: it is none.
    """
    reader = _Reader(_tokens(text))
    node = reader.expression(is_positive=True, depth=0)
    reader.finish()
    return node


def _tokens(text: str) -> list[str]:
    tokens: list[str] = []
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise ExpressionError(f"{text[position : position + 20]!r} is not understood")
        if match.lastgroup:
            tokens.append(match[0])
        position = match.end()
    return tokens


class _Reader:
    """Recursive descent over tokens."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens = tokens
        self._at = 0

    def _peek(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def _next(self) -> str:
        token = self._peek()
        if not token:
            raise ExpressionError("it ends too early")
        self._at += 1
        return token

    def _take(self, token: str) -> bool:
        if self._peek() != token:
            return False
        self._at += 1
        return True

    def finish(self) -> None:
        """Refuse what is left over."""
        if self._peek():
            mixed = self._peek() in {"&&", "||"}
            why = "&& and || without parentheses" if mixed else f"{self._peek()!r} is one too many"
            raise ExpressionError(why)

    def expression(self, *, is_positive: bool, depth: int) -> Node:
        """Terms joined by one operator."""
        if depth > MAX_DEPTH:
            raise ExpressionError(f"more than {MAX_DEPTH} parentheses within each other")
        parts = [self._term(is_positive=is_positive, depth=depth)]
        operator = self._peek()
        if operator not in {"&&", "||"}:
            return parts[0]
        while self._take(operator):
            parts.append(self._term(is_positive=is_positive, depth=depth))
        return Junction((operator == "&&") == is_positive, tuple(parts))

    def _term(self, *, is_positive: bool, depth: int) -> Node:
        is_negated = self._take("!")
        if self._take("("):
            node = self.expression(is_positive=is_positive != is_negated, depth=depth + 1)
            if not self._take(")"):
                self.finish()
                raise ExpressionError("a parenthesis is not closed")
            return node
        first = self._operand()
        if self._peek() in _RELATIONS:
            if is_negated:
                raise ExpressionError("! needs parentheses around a comparison")
            return self._comparison(first, is_positive=is_positive)
        if len(first) != 1 or not (_NAME.fullmatch(first[0]) or first[0] in {"0", "1"}):
            raise ExpressionError(f"{' '.join(first)!r} is compared with nothing")
        is_positive = is_positive != is_negated
        if first[0] in {"0", "1"}:
            return Junction((first[0] == "1") == is_positive, ())
        return Comparison(first[0], "==" if is_positive else "!=", ("1",), is_bare=True)

    def _operand(self) -> tuple[str, ...]:
        """A name or constant, or a set of constants; commas in it are optional."""
        if not self._take("{"):
            return (self._word(),)
        found: list[str] = []
        while not self._take("}"):
            found.append(self._word())
            self._take(",")
        if not found:
            raise ExpressionError("{} holds no constant")
        return tuple(found)

    def _word(self) -> str:
        word = self._next()
        if word in _SIGNS:
            raise ExpressionError(f"{word!r} is in the wrong place")
        return word

    def _comparison(self, first: tuple[str, ...], *, is_positive: bool) -> Node:
        """`name relation constants`, `constants relation name`, or `constant <= name <= constant`."""
        relation, second = self._next(), self._operand()
        if len(first) == 1 and _NAME.fullmatch(first[0]):
            return _compared(first[0], relation, second, is_positive=is_positive)
        if len(second) != 1 or not _NAME.fullmatch(second[0]):
            raise ExpressionError(f"{' '.join(first)!r} is compared with no field")
        name = second[0]
        low = _compared(name, _RELATIONS[relation], first, is_positive=is_positive)
        if self._peek() not in _RELATIONS:
            return low
        other = self._next()
        if relation[0] != other[0] or relation[0] not in "<>":
            raise ExpressionError(f"{relation} and {other} make no range")
        high = _compared(name, other, self._operand(), is_positive=is_positive)
        return Junction(is_positive, (low, high))


def _compared(name: str, relation: str, constants: tuple[str, ...], *, is_positive: bool) -> Comparison:
    if relation not in {"==", "!="} and len(constants) > 1:
        raise ExpressionError(f"{relation} with a set")
    for constant in constants:
        if _NAME.fullmatch(constant):
            raise ExpressionError(f"{name} is compared with {constant}, which is no constant")
    return Comparison(name, relation if is_positive else _OPPOSITES[relation], constants)
