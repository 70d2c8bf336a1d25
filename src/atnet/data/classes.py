"""Class names: what a class is called in a data set, and what a person calls it. Free of torch."""

import re
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

_WORDNET_ID = re.compile(r"n\d{8}")


def display_names(classes: tuple[str, ...]) -> tuple[str, ...]:
    """What a person calls each class: ImageNet's name for a WordNet id, else the class's own name.

    The names are timm's list of ImageNet's synsets, of each the first; where two classes have the same,
    as the two cranes, the id follows.
    """
    if not any(_WORDNET_ID.fullmatch(name) for name in classes):
        return classes
    known = _wordnet_names()
    names = [known.get(name, name) for name in classes]
    return tuple(f"{n} ({c})" if names.count(n) > 1 else n for n, c in zip(names, classes, strict=True))


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
