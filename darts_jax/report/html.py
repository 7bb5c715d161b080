"""Parts that the package's HTML pages share. Pages need no scripts and no outside resources."""

import functools
import html
import json
from typing import Any

from matplotlib.figure import Figure

from darts_jax.report import figures, style

#: Escapes text for an element or a quoted attribute.
escape = functools.partial(html.escape, quote=True)


def document(title: str, body: str, css: str = '') -> str:
  """An HTML document whose policy forbids scripts and outside resources.

  Args:
    title: title of the document, as text.
    body: content, as HTML.
    css: style rules to add to those of `darts_jax.report.style`.
  """
  return (
    '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    '<meta http-equiv="Content-Security-Policy"'
    " content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">\n"
    f'<title>{escape(title)}</title>\n<style>{style.CSS}{css}</style>\n</head>\n'
    f'<body>\n<main>\n{body}</main>\n</body>\n</html>\n'
  )


def section(title: str, content: str, lead: str = '') -> str:
  """A section of the page; all arguments are HTML, and `lead` is its introduction."""
  lead = f'<p class="lead">{lead}</p>\n' if lead else ''
  return f'<section>\n<h2>{title}</h2>\n{lead}{content}\n</section>\n'


def absent(*reasons: str | None) -> str:
  """A paragraph in place of missing content, with the reasons, which are text."""
  return f'<p class="absent">{escape(" ".join(reason for reason in reasons if reason))}</p>'


def figure(drawn: Figure, name: str, title: str, description: str, note: str = '') -> str:
  """A figure with its caption; all strings are text.

  Args:
    drawn: the figure.
    name: unique id of the figure in the page.
    title: the caption.
    description: text for readers who cannot see the figure.
    note: text after the caption, in lighter type.
  """
  caption = escape(title) + (f' <span>{escape(note)}</span>' if note else '')
  return f'<figure><figcaption>{caption}</figcaption>{figures.to_svg(drawn, name, description)}</figure>\n'


def fact(name: str, value: Any) -> str:
  """An item of the list `facts` at the top: its name, which is HTML, and its value as text."""
  return f'<li><span>{name}</span> <b>{escape(text(value))}</b></li>'


def tile(name: str, value: str) -> str:
  """An item of the list `tiles` at the top; both arguments are HTML."""
  return f'<div><dt>{name}</dt><dd>{value}</dd></div>'


def text(value: Any) -> str:
  """A setting as text: a string as it is, anything else as JSON."""
  return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def duration(seconds: float) -> str:
  """A number of seconds as text, such as `3 min 07 s`."""
  minutes, rest = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours:,} h {minutes:02} min' if hours else f'{minutes} min {rest:02} s' if minutes else f'{seconds:.1f} s'
