"""HTML from values. Every function escapes what it is given, except `Html`, which is markup already."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from autoflip_secure.report.figures import Plot

__all__ = [
    "Html",
    "cards",
    "details",
    "figure",
    "items",
    "join",
    "notice",
    "paragraph",
    "section",
    "side_by_side",
    "table",
    "text",
]


class Html(str):
    """Markup that is safe to place in a page as it stands."""

    __slots__ = ()


def text(value: Any) -> Html:
    """`value` as text of the page."""
    return value if isinstance(value, Html) else Html(escape(str(value), quote=True))


def join(*parts: Html | None) -> Html:
    """Parts one after another; None is left out."""
    return Html("\n".join(part for part in parts if part))


def paragraph(words: Any) -> Html:
    """One paragraph."""
    return Html(f"<p>{text(words)}</p>")


def items(entries: Iterable[Any]) -> Html:
    """A list."""
    return Html("<ul>" + "".join(f"<li>{text(entry)}</li>" for entry in entries) + "</ul>")


def section(name: str, title: str, *parts: Html | None) -> Html:
    """A titled section with the id `name`."""
    heading = f'<section id="{name}" aria-labelledby="{name}-title"><h2 id="{name}-title">{text(title)}</h2>'
    return Html(f"{heading}\n{join(*parts)}\n</section>")


def notice(title: str, words: str) -> Html:
    """A warning no reader can miss."""
    return Html(
        f'<div class="alarm" role="note"><p><strong>Warning: {text(title)}</strong></p>{paragraph(words)}</div>'
    )


def cards(figures: Iterable[tuple[str, str, str]]) -> Html:
    """Headline figures: name, value, explanation."""
    return Html(
        '<dl class="cards">'
        + "".join(
            f'<div><dt>{text(name)}</dt><dd class="value">{text(value)}</dd><dd class="note">{text(note)}</dd></div>'
            for name, value, note in figures
        )
        + "</dl>"
    )


def figure(plot: Plot | None, otherwise: str) -> Html:
    """A figure with its caption, or a sentence where there is nothing to draw."""
    if plot is None:
        return Html(f'<p class="empty">{text(otherwise)}</p>')
    return Html(f"<figure>{plot.svg}<figcaption>{text(plot.caption)}</figcaption></figure>")


def side_by_side(*parts: Html | None) -> Html:
    """Parts beside one another where the page is wide enough."""
    return Html(f'<div class="columns">{"".join(f"<div>{part}</div>" for part in parts if part)}</div>')


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[Any]], *, numeric: Iterable[int] = ()) -> Html:
    """A table whose first column names its rows; columns in `numeric` are aligned to the right."""
    right = set(numeric)

    def cell(column: int, value: Any) -> str:
        kind = ' class="number"' if column in right else ""
        return f'<th scope="row"{kind}>{text(value)}</th>' if column == 0 else f"<td{kind}>{text(value)}</td>"

    header = "".join(
        f'<th scope="col"{" class=number" * (column in right)}>{text(name)}</th>' for column, name in enumerate(head)
    )
    body = "".join("<tr>" + "".join(cell(c, value) for c, value in enumerate(row)) + "</tr>\n" for row in rows)
    # A region that scrolls sideways must be reachable with the keyboard and have a name.
    return Html(
        f'<div class="scroll" role="region" tabindex="0" aria-label="{text(caption)}"><table>'
        f"<caption>{text(caption)}</caption><thead><tr>{header}</tr></thead>\n<tbody>{body}</tbody></table></div>"
    )


def details(title: str, content: Html, *, opened: bool = False) -> Html:
    """Content the reader may unfold."""
    return Html(f"<details{' open' * opened}><summary>{text(title)}</summary>{content}</details>")
