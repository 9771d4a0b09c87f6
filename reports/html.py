"""The report as one HTML page that needs nothing but itself."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from reports import sentences, wording
from reports.captions import captions
from reports.content import Content, plain
from reports.figures_html import figures
from reports.metrics_help import FOOTNOTES
from reports.palette import DARK, LIGHT


def environment(autoescape: bool) -> Environment:
    """Jinja with the project's number formats as filters."""
    made = Environment(
        loader=PackageLoader("reports"),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("loss", "ppl", "signed", "percent", "signed_percent", "amount", "setting"):
        made.filters[name] = getattr(wording, name)
    return made


def context(content: Content) -> dict[str, Any]:
    """What both templates use."""
    return {
        "content": content,
        "answer": content.answer,
        "captions": captions(content),
        "sentences": sentences,
        "wording": wording,
        "footnotes": FOOTNOTES,
    }


def render(content: Content) -> str:
    """The whole page. Everything from the study is escaped, also inside the figures' JSON."""
    template = environment(autoescape=True).get_template("report.html.j2")
    drawn = plain(figures(content))
    # plotly.js is the one text that goes in as it is.
    return template.render(
        **context(content),
        figures=drawn,
        light=LIGHT,
        dark=DARK,
        plotly=Markup(get_plotlyjs()) if drawn else "",
    )
