"""The report as one HTML page that needs nothing but itself."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from reports import comparison_sentences, lead_sentences, sentences, wording
from reports.captions import captions
from reports.comparison import Comparison
from reports.comparison_sentences import captions as comparison_captions
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
        "leads": lead_sentences,
        "wording": wording,
        "footnotes": FOOTNOTES,
    }


def comparison_context(found: Comparison) -> dict[str, Any]:
    """The same for a comparison."""
    return {
        "title": " and ".join(member.study for member in found.members),
        "comparison": found,
        "names": [member.study for member in found.members],
        "captions": comparison_captions(found),
        "sentences": comparison_sentences,
        "wording": wording,
        "footnotes": FOOTNOTES,
    }


def render(content: Content) -> str:
    """The whole page of one study."""
    return page("report.html.j2", content.study, figures(content), context(content))


def page(template: str, title: str, drawn: dict[str, Any], values: dict[str, Any]) -> str:
    """Everything from a study is escaped, also inside the JSON of its figures, `drawn`."""
    # plotly.js is the one text that goes in as it is.
    return (
        environment(autoescape=True)
        .get_template(template)
        .render(
            **(values | {"title": title}),
            figures=plain(drawn),
            light=LIGHT,
            dark=DARK,
            plotly=Markup(get_plotlyjs()) if drawn else "",
        )
    )
