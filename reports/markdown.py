"""The report as Markdown, with its figures as files beside it."""

import re
from typing import Any

from reports.content import Content
from reports.html import context, environment

SHOWN = 30  # rows of the leaderboard; all are in trials.csv

_SPECIAL = re.compile(r"([\\`*\[\]|<>]|(?<!\w)_|_(?!\w))")


def escaped(text: object) -> str:
    """`text` on one line, with nothing in it that Markdown or HTML would act on."""
    return _SPECIAL.sub(r"\\\1", " ".join(str(text).split())).replace("\\<", "&lt;").replace("\\>", "&gt;")


def code(text: object) -> str:
    """`text` for a fenced block: one line, which cannot close the fence."""
    return " ".join(str(text).split()).replace("```", "'''")


def render(content: Content, figures: list[str]) -> str:
    """`figures`: names of those that lie in `figures/NAME.png`."""
    rows = content.leaderboard
    shown = [row for row in rows if row.pinned] + [row for row in rows if not row.pinned][:SHOWN]
    values = context(content) | {"figures": figures, "rows": shown, "hidden": len(rows) - len(shown)}
    return text("report.md.j2", values)


def text(template: str, values: dict[str, Any]) -> str:
    made = environment(autoescape=False)
    made.filters |= {"md": escaped, "code": code}
    return made.get_template(template).render(**values)
