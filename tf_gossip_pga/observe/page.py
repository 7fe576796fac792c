"""Turn a `Record` into a page: one HTML file that needs no other file, no network and no script."""

from __future__ import annotations

import dataclasses
import html
import importlib.resources
from collections.abc import Iterable, Iterator, Sequence

from tf_gossip_pga.observe import words
from tf_gossip_pga.observe.record import Record


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture of the page.

    Attributes:
      title: its heading.
      svg: the picture as an `<svg>` element.
      caption: what else a reader has to know. Default: nothing.
      least_width: width in pixels below which the picture scrolls within its frame instead of
        shrinking. Default 0.
    """

    title: str
    svg: str
    caption: str = ""
    least_width: int = 0


def page(record: Record, curves: Sequence[Picture], waiting: Picture | None) -> str:
    """Return the page about a run as HTML.

    All texts of the record are escaped.

    Args:
      record: the run.
      curves: the pictures of the section "Curves".
      waiting: the heat map of who waited for whom, or None for a single worker.
    """
    style = (
        importlib.resources.files("tf_gossip_pga.observe").joinpath("report.css").read_text("utf-8")
    )
    title = f"{record.model}: training report"
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        '<head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{html.escape(title)}</title>",
        f"<style>\n{style}</style></head>",
        "<body><main>",
        *_header(record),
        *_curves(curves),
        *_waiting(record, waiting),
        *_changes(record),
        *_run(record),
        f"<footer>Written by tf_gossip_pga on {words.moment(record.started + record.seconds)}."
        "</footer>",
        "</main></body></html>",
    ]
    return "\n".join(parts) + "\n"


def _header(record: Record) -> Iterator[str]:
    state = "finished" if record.is_finished else "unfinished"
    yield "<header>"
    yield f"<h1>{html.escape(record.model)}</h1>"
    yield f'<span class="state {state}">{state}</span>'
    yield "</header>"
    yield f'<p class="muted">{html.escape(words.state(record))}</p>'
    yield '<dl class="facts">'
    for name, value, note in _facts(record):
        small = f"<small>{html.escape(note)}</small>" if note else ""
        yield f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}{small}</dd></div>"
    yield "</dl>"


def _facts(record: Record) -> Iterator[tuple[str, str, str]]:
    """Yield name, value and note of the numbers at the top of the page."""
    for metric in record.metrics[:2]:
        name = f"val_{metric}" if f"val_{metric}" in record.logs else metric
        _, values = record.series(name)
        yield name, words.number(values[-1]), "last epoch"
    yield "duration", words.seconds(record.seconds), f"{record.steps:,} steps"
    if record.epochs:
        yield "time in exchanges", words.share(record.exchanging), "without the first step"
    yield "sent per worker", words.size(sum(record.sent) / record.size), "in all epochs, mean"
    lost = len({rank for each in record.changes for rank in each.lost})
    yield "workers", str(record.size), f"{lost} lost" if lost else ""


def _curves(curves: Sequence[Picture]) -> Iterator[str]:
    yield "<h2>Curves</h2>"
    if not curves:
        yield "<p>No epoch has ended yet.</p>"
        return
    yield '<div class="pictures two">' if len(curves) in (2, 4) else '<div class="pictures">'
    for each in curves:
        yield from _figure(each)
    yield "</div>"


def _figure(picture: Picture) -> Iterator[str]:
    yield f"<figure><h3>{html.escape(picture.title)}</h3>"
    if picture.least_width:
        yield f'<div style="min-width: {picture.least_width}px">{picture.svg}</div>'
    else:
        yield picture.svg
    if picture.caption:
        yield f"<figcaption>{html.escape(picture.caption)}</figcaption>"
    yield "</figure>"


def _waiting(record: Record, waiting: Picture | None) -> Iterator[str]:
    yield "<h2>Who waited for whom</h2>"
    first, *more = words.waits(record)
    yield f'<p class="lead">{html.escape(first)}</p>'
    yield from (f"<p>{html.escape(each)}</p>" for each in more)
    if waiting is None:
        yield from _ranks(record)
        return
    # A large heat map needs the whole width.
    yield f'<div class="{"stack" if waiting.least_width else "pair"}">'
    yield from _figure(waiting)
    yield from _ranks(record)
    yield "</div>"


def _ranks(record: Record) -> Iterator[str]:
    """Yield a table with a row for each rank."""
    is_member = dict.fromkeys(range(record.size), True)
    for each in record.changes:
        is_member.update(dict.fromkeys(each.lost, False) | dict.fromkeys(each.joined, True))
    waited_for = [sum(column) for column in zip(*record.waiting, strict=True)]
    # A keyboard can scroll the table because it can have the focus.
    yield '<div class="sheet" tabindex="0" role="region" aria-label="The ranks"><table><thead><tr>'
    yield '<th scope="col">rank</th>'
    for head in ("waited for others", "others waited for it", "sent"):
        yield f'<th scope="col" class="number">{head}</th>'
    yield "</tr></thead><tbody>"
    for rank, host in enumerate(record.hosts):
        lost = "" if is_member[rank] else " (lost)"
        yield f'<tr><td>{rank}{lost} <span class="host">{html.escape(host)}</span></td>'
        yield from (
            f'<td class="number">{text}</td>'
            for text in (
                words.seconds(sum(record.waiting[rank])),
                words.seconds(waited_for[rank]),
                words.size(record.sent[rank]),
            )
        )
        yield "</tr>"
    yield "</tbody></table></div>"


def _changes(record: Record) -> Iterator[str]:
    yield "<h2>Workers lost and joined</h2>"
    if not record.changes:
        yield "<p>No worker was lost.</p>"
        return
    yield '<ol class="changes">'
    for each in record.changes:
        at = html.escape(words.moment(each.at))
        yield f'<li>{html.escape(words.change(each))} <span class="muted">{at}</span></li>'
    yield "</ol>"


def _run(record: Record) -> Iterator[str]:
    yield '<div class="pair halves"><section><h2>Settings</h2>'
    yield from _table(record.settings.items())
    yield "</section><section><h2>Run</h2>"
    yield from _table(
        [
            ("started", words.moment(record.started)),
            ("duration", words.seconds(record.seconds)),
            ("trainable parameters", f"{record.parameters:,}"),
            *record.versions.items(),
        ]
    )
    yield "</section></div>"
    yield "<h2>Command</h2>"
    yield f'<div class="sheet"><pre>{html.escape(record.command)}</pre></div>'


def _table(rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    yield '<div class="sheet"><table class="settings"><tbody>'
    for name, value in rows:
        name, value = html.escape(name), html.escape(value)
        yield f'<tr><th scope="row">{name}</th><td>{value}</td></tr>'
    yield "</tbody></table></div>"
