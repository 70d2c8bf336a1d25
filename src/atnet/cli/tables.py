"""Tables in a terminal."""

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table


def table_of(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table whose first column is words and whose others are numbers."""
    table = Table(box=None, header_style="bold")
    for place, head in enumerate(heads):
        table.add_column(head, justify="right" if place else "left")
    for row in rows:
        table.add_row(*map(escape, row))
    return table
