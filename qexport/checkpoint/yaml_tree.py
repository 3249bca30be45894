"""YAML from people and from strangers: a bounded tree of words that remembers where each of them stands.

The one reader for recipes, ``--set`` and the front matter of cards. It works on the parser's events and never
lets PyYAML make values: no tags, no dates, no numbers in base 60, nothing that grows (an alias counts as
often as it is used) and nothing that recurses. A key that is there twice is refused, since one of the two
would silently be lost. Words keep their text: which type one should be is known where it is read, and a
revision such as ``0123456`` or ``1e10`` is text there. Anchors and aliases work; merge keys (``<<``) do not.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

Note = Callable[["Place", str], None]

MOST_CHARACTERS = 1 << 20
"""The front matter of a model that lists thousands of benchmark results has a third of this."""
_MOST_NODES = 50_000
_DEEPEST = 32  # a recipe needs six levels, a card's model-index eight
# What YAML lets stand in a file; a word may not spell the others by an escape, either.
_UNREADABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_NULLS = frozenset(("", "~", "null", "Null", "NULL"))
_TRUE, _FALSE = frozenset(("true", "True", "TRUE")), frozenset(("false", "False", "FALSE"))
_WHOLE = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})")
_NUMBER = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]{1,4})?")


@dataclass(frozen=True, order=True)
class Place:
    """A line and a column of a file, or (``line`` 0) an option of the command line."""

    source: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}" if self.line else self.source


class Word(str):
    """One value as it is written. ``quoted``: in quotes, so that ``true`` and ``3`` are no more than text."""

    place: Place
    quoted: bool

    @classmethod
    def at(cls, text: str, place: Place, *, quoted: bool = False) -> Word:
        """A word that stands there."""
        word = cls(text)
        word.place, word.quoted = place, quoted
        return word


class Items(list[Any]):
    """A list, and where it begins."""

    def __init__(self, items: list[Any], place: Place) -> None:
        super().__init__(items)
        self.place = place


class Table(dict[str, Any]):
    """A mapping with text for keys, where it begins, and (``keys_at``) where each key stands."""

    def __init__(self, entries: dict[str, Any], place: Place, keys_at: dict[str, Place]) -> None:
        super().__init__(entries)
        self.place = place
        self.keys_at = keys_at


Node = Word | Items | Table | None
"""``None`` is null: nothing, or written as such."""


def place_of(root: Node, path: tuple[str | int, ...], fallback: Place, *, key: bool = False) -> Place:
    """Where the value at ``path`` stands: a word itself, of anything larger its key.

    What is not there stands where that does which should hold it.

    Args:
        fallback: for a tree that is empty.
        key: of a word, too, the place of its key.
    """
    place, node = getattr(root, "place", fallback), root
    for step in path:
        if isinstance(node, Table) and step in node:
            place, node = node.keys_at[str(step)], node[str(step)]
        elif isinstance(node, Items) and isinstance(step, int) and step < len(node):
            node = node[step]
            place = getattr(node, "place", place)
        else:
            return place
    return node.place if isinstance(node, Word) and not key else place


def plain(node: Node) -> Any:
    """As values of JSON, by YAML 1.2's core schema: what looks like none of its kinds stays text."""
    if isinstance(node, Table):
        return {str(key): plain(value) for key, value in node.items()}
    if isinstance(node, Items):
        return [plain(item) for item in node]
    if node is None or node.quoted:
        return None if node is None else str(node)
    if node in _TRUE or node in _FALSE:
        return node in _TRUE
    if _WHOLE.fullmatch(node):
        return int(node)
    number = float(node) if _NUMBER.fullmatch(node) else math.inf
    return number if math.isfinite(number) else str(node)


def parse_yaml(text: str, source: str, note: Note, *, line: int = 1) -> Node:
    """The tree of one document; ``None`` where it is empty, or after noting that it is not YAML.

    Args:
        source: the file's name for messages, or an option of the command line.
        note: is told of everything that is wrong.
        line: of the file, in which the text begins; 0 for an option, which has none.
    """
    import yaml

    text = text.removeprefix("\ufeff")
    if len(text) > MOST_CHARACTERS:
        note(Place(source), f"this has {len(text):,} characters; {MOST_CHARACTERS:,} are read at most")
        return None
    bad = _UNREADABLE.search(text)
    if bad is not None:
        before = text[: bad.start()]
        column = bad.start() - before.rfind("\n")
        place = Place(source, line + before.count("\n"), column) if line else Place(source)
        note(place, f"this is not YAML: the character U+{ord(bad[0]):04X} may not stand in it")
        return None
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    building = _Building(source, note, line)
    try:
        building.take(yaml.parse(text, Loader=loader))
    except _Unreadable as error:
        note(error.place, f"this is not YAML that can be read: {error}")
        return None
    except yaml.MarkedYAMLError as error:
        context = f" {error.context}" if error.context else ""
        where = building.at(error.problem_mark or error.context_mark)
        note(where, f"this is not YAML: {error.problem or 'unreadable'}{context}")
        return None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # PyYAML lets chr() of an escape fail
        note(Place(source, line), f"this is not YAML: {' '.join(str(error).split())}")
        return None
    return building.root


class _Unreadable(Exception):
    """The rest cannot be made sense of."""

    def __init__(self, place: Place, message: str) -> None:
        super().__init__(message)
        self.place = place


@dataclass
class _Part:
    """A node; how many nodes it holds and how many levels of them; of an open mapping, the key that has no
    value yet."""

    node: Node
    place: Place
    anchor: str | None = None
    count: int = 1
    height: int = 1
    key: _Part | None = None


class _Building:
    """A tree from events; whatever is open is on a stack of its own."""

    def __init__(self, source: str, note: Note, line: int) -> None:
        self._source, self._note, self._line = source, note, line
        self._open: list[_Part] = []
        self._known: dict[str, _Part] = {}
        self._documents = 0
        self.root: Node = None

    def at(self, mark: Any) -> Place:
        if not self._line or mark is None:
            return Place(self._source, self._line)
        return Place(self._source, self._line + mark.line, mark.column + 1)

    def take(self, events: Iterator[Any]) -> None:
        """Build :attr:`root`."""
        import yaml

        for event in events:
            place = self.at(event.start_mark)
            if isinstance(event, yaml.DocumentStartEvent):
                self._documents += 1
                if self._documents > 1:
                    raise _Unreadable(place, "a second document begins here; there may be one")
            elif isinstance(event, yaml.AliasEvent):
                self._put(self._alias(event.anchor or "", place))
            elif isinstance(event, yaml.ScalarEvent):
                self._put(_Part(self._word(event, place), place, event.anchor))
            elif isinstance(event, yaml.CollectionStartEvent):
                self._refuse_tag(event, place)
                if len(self._open) >= _DEEPEST:
                    raise _Unreadable(place, f"nested too deeply: more than {_DEEPEST} levels")
                listed = isinstance(event, yaml.SequenceStartEvent)
                node = Items([], place) if listed else Table({}, place, {})
                self._open.append(_Part(node, place, event.anchor))
            elif isinstance(event, yaml.CollectionEndEvent):
                self._put(self._open.pop())

    def _refuse_tag(self, event: Any, place: Place) -> None:
        if event.tag is not None:
            self._note(place, f"tags such as {event.tag!r:.60} are not read")

    def _word(self, event: Any, place: Place) -> Word | None:
        self._refuse_tag(event, place)
        bad = _UNREADABLE.search(event.value)
        if bad is not None:
            self._note(place, f"a value may not hold the character U+{ord(bad[0]):04X}")
        quoted = bool(event.style)  # plain is "" to libyaml, None to PyYAML
        null = not quoted and event.value in _NULLS
        return None if null else Word.at(event.value, place, quoted=quoted)

    def _alias(self, anchor: str, place: Place) -> _Part:
        if any(each.anchor == anchor for each in self._open):
            raise _Unreadable(place, f"the alias *{anchor} holds itself")
        if anchor not in self._known:
            raise _Unreadable(place, f"there is no anchor &{anchor} before this alias")
        return replace(self._known[anchor], place=place, anchor=None)

    def _put(self, made: _Part) -> None:
        """Into what is open. Nodes are counted as often as a reader of the tree would meet them."""
        if made.anchor is not None:
            self._known[made.anchor] = made
        if not self._open:
            self.root = made.node
            return
        holder = self._open[-1]
        holder.count += made.count
        holder.height = max(holder.height, made.height + 1)
        if holder.count > _MOST_NODES:
            much = f"more than {_MOST_NODES:,} values, aliases counted as often as used"
            raise _Unreadable(made.place, much)
        if len(self._open) + made.height > _DEEPEST + 1:
            raise _Unreadable(made.place, f"nested too deeply: more than {_DEEPEST} levels")
        if isinstance(holder.node, Items):
            holder.node.append(made.node)
        elif holder.key is None:
            holder.key = made
        elif isinstance(holder.node, Table):
            self._entry(holder.node, holder.key, made.node)
            holder.key = None

    def _entry(self, table: Table, key: _Part, value: Node) -> None:
        if not isinstance(key.node, Word):
            self._note(key.place, "a key must be a word")
        elif key.node == "<<" and not key.node.quoted:
            self._note(key.place, "merge keys (<<) are not read; write the keys out")
        elif key.node in table:
            first = table.keys_at[key.node]
            at = f"; the first is in line {first.line}" if first.line else ""
            self._note(key.place, f"{str(key.node)!r} is there twice{at}")
        else:
            table[str(key.node)] = value
            table.keys_at[str(key.node)] = key.place
