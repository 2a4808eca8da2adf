"""A table for people, and its forms as GitHub Markdown and as LaTeX."""

from __future__ import annotations

import re
from dataclasses import dataclass

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    # After the end of a row, a star or a bracket would be taken for an argument of it.
    "*": "{*}",
    "[": "{[}",
    "±": r"$\pm$",
    "†": r"$^{\dagger}$",
    "×": r"$\times$",
    "²": r"$^{2}$",
    "→": r"$\rightarrow$",
    "−": "$-$",
    "–": "--",
    "…": r"\ldots{}",
    "β": r"$\beta$",
    "γ": r"$\gamma$",
    "λ": r"$\lambda$",
}


@dataclass(frozen=True)
class Table:
    """Plain text without any markup, as `pipeline.console.Console.table` takes it."""

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    """Each as long as the headers."""
    notes: tuple[str, ...] = ()
    """Lines below the table."""


def markdown(table: Table) -> str:
    """A heading, the table and its notes as GitHub Markdown, with a line feed at the end."""
    lines = [_markdown_row(table.headers), "|" + "---|" * len(table.headers)]
    lines += [_markdown_row(row) for row in table.rows]
    blocks = [f"### {markdown_text(table.title)}", "\n".join(lines), *(markdown_text(note) for note in table.notes)]
    return "\n\n".join(blocks) + "\n"


def markdown_text(text: str) -> str:
    """One line of text in which nothing is taken for markup."""
    return re.sub(r"([\\`*_|<>~&\[\]])", r"\\\1", _one_line(text))


def _markdown_row(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(markdown_text(cell) for cell in cells) + " |"


def latex(table: Table) -> str:
    """A `tabular` with the rules of the package booktabs, title above and notes below, with a line feed at the end."""
    rows = [" & ".join(latex_text(cell) for cell in row) + r" \\" for row in (table.headers, *table.rows)]
    lines = [
        r"% needs \usepackage{booktabs}",
        rf"{{\small {latex_text(table.title)}\par}}",
        rf"\begin{{tabular}}{{{'l' * len(table.headers)}}}",
        r"\toprule",
        rows[0],
        r"\midrule",
        *rows[1:],
        r"\bottomrule",
        r"\end{tabular}",
        *(rf"{{\par\footnotesize {latex_text(note)}\par}}" for note in table.notes),
    ]
    return "\n".join(lines) + "\n"


def latex_text(text: str) -> str:
    """One line of text in which nothing is taken for a command; the signs that this project uses beside ASCII become some."""
    # Two hyphens would become a dash.
    return re.sub(
        "-(?=-)|[^-]", lambda sign: "-{}" if sign[0] == "-" else _LATEX.get(sign[0], sign[0]), _one_line(text)
    )


def _one_line(text: str) -> str:
    return " ".join(text.split())
