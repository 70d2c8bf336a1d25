"""Class names: what a class is called in a dataset, and what a person calls it. Free of torch."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_WORDNET_ID = re.compile(r"n\d{8}")
_BLANKS = "".join(filter(str.isspace, map(chr, range(0x3001)))) + "\u200b\u200c\u200d\u200e\u200f\u2060\ufeff"
"""What is not seen at the ends of a word: all spaces, those without width too."""


def class_of(value: Any) -> str:
    """The class that a label in a table is: its text without blanks around it, accents composed; "" if there is none.

    Raises ValueError if it is neither text nor a number.
    """
    if isinstance(value, str):
        name = unicodedata.normalize("NFC", value).strip(_BLANKS)
        name.encode()  # a lone surrogate could not be written to any file
        return name
    if value is None or value != value:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # a column of whole numbers, of which some are missing, is one of floats
    if isinstance(value, int | float):
        return str(value)
    raise ValueError(f"a label is text or a number, not {type(value).__name__}")


def class_order(names: Iterable[str]) -> tuple[str, ...]:
    """The order of classes where none is given: of names by their letters, of whole numbers by their value."""
    names = sorted(names)
    if all(name.isdecimal() and name.isascii() for name in names):
        names.sort(key=lambda name: (len(name.lstrip("0")), name.lstrip("0")))
    return tuple(names)


def look_alikes(classes: Sequence[str]) -> list[tuple[str, ...]]:
    """Groups of classes that differ only in case, spaces, hyphens, accents' or letters' coding, or zeros in front."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for name in classes:
        shown = unicodedata.normalize("NFKC", name).casefold()
        key = "".join(c for c in shown if not c.isspace() and c not in "-_" and unicodedata.category(c) != "Cf")
        groups[key.lstrip("0") or "0" if key.isdecimal() else key].append(name)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def display_names(classes: tuple[str, ...]) -> tuple[str, ...]:
    """What a person calls each class: ImageNet's name for a WordNet id, else the class's own name.

    The names are timm's list of ImageNet's synsets, of each the first; where two classes have the same,
    as the two cranes, the id follows.
    """
    if not any(_WORDNET_ID.fullmatch(name) for name in classes):
        return classes
    known = _wordnet_names()
    names = [known.get(name, name) for name in classes]
    alike = Counter(names)
    return tuple(f"{n} ({c})" if alike[n] > 1 else n for n, c in zip(names, classes, strict=True))


def printable(name: str) -> str:
    """The name without what a terminal would obey: control characters become a question mark."""
    return "".join(letter if letter.isprintable() else "?" for letter in name)


def spreadsheet_safe(name: str) -> str:
    """The printable name, not to be taken for a formula: one that begins like it gets an apostrophe.

    Source: OWASP, "CSV Injection".
    """
    shown = printable(name)
    return f"'{shown}" if shown[:1] in tuple("=+-@") else shown


def spreadsheet_names(classes: Sequence[str]) -> list[str]:
    """Spreadsheet-safe class names; where two became the same, the class's position follows."""
    names = [spreadsheet_safe(name) for name in classes]
    alike = Counter(names)
    return [f"{name} ({i})" if alike[name] > 1 else name for i, name in enumerate(names)]


def _wordnet_names() -> dict[str, str]:
    spec = find_spec("timm")
    if spec is None or spec.origin is None:
        return {}
    listed = Path(spec.origin).parent / "data" / "_info" / "imagenet_synset_to_lemma.txt"
    rows = (line.split("\t", 1) for line in listed.read_text(encoding="utf-8").splitlines() if "\t" in line)
    return {wordnet_id: lemmas.split(",")[0].strip() for wordnet_id, lemmas in rows}
