"""The colours of the report: few, and told apart by colour-blind readers (Okabe & Ito 2008).

Colour is never alone: base and default rows differ by dash, pruned trials by their cross, groups by their marks.
"""

LIGHT = {
    "page": "#ffffff",
    "raised": "#f5f7f9",
    "line": "#dde2e7",
    "ink": "#1c2329",
    "soft": "#5b6670",
    "best": "#0072b2",
    "default": "#d55e00",
    "base": "#1c2329",
    "trial": "#9aa5af",
    "heat_good": "#08519c",
    "heat_poor": "#e3eef8",
    "group0": "#0072b2",
    "group1": "#d55e00",
    "group2": "#009e73",
    "group3": "#cc79a7",
    "group4": "#56b4e9",
    "group5": "#b88600",
    "group6": "#1c2329",
    "group7": "#7a5cc0",
}

DARK = {
    "page": "#14181c",
    "raised": "#1d2329",
    "line": "#333c45",
    "ink": "#e8ecef",
    "soft": "#9daab5",
    "best": "#56b4e9",
    "default": "#e69f00",
    "base": "#e8ecef",
    "trial": "#6f7c88",
    "heat_good": "#7cc4f2",
    "heat_poor": "#22313f",
    "group0": "#56b4e9",
    "group1": "#e6874a",
    "group2": "#2bc49a",
    "group3": "#e0a3c4",
    "group4": "#3f86c0",
    "group5": "#f0d060",
    "group6": "#e8ecef",
    "group7": "#a994e6",
}
