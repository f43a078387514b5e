"""How do we show it? Faces of one summary: words, terminal, one HTML file, figures, notebook. They compute nothing and load no model."""

from .claims_section import claims_section
from .figures import figures, png
from .html import html
from .impact_data import costs_from_run, costs_from_tables
from .impact_sections import impact_section
from .notebook import notebook
from .tame_sections import tame_html, tame_section
from .tame_terminal import tame_terminal
from .terminal import terminal, view
from .trace_data import read_claims
from .trace_figures import trace_figures, write_figures
from .trace_sections import trace_sections
from .trace_terminal import claims_list, claims_terminal, trace_terminal
from .trace_words import trace_words
from .words import headline, section, words

__all__ = [
    "claims_list",
    "claims_section",
    "claims_terminal",
    "costs_from_run",
    "costs_from_tables",
    "figures",
    "headline",
    "html",
    "impact_section",
    "notebook",
    "png",
    "read_claims",
    "section",
    "tame_html",
    "tame_section",
    "tame_terminal",
    "terminal",
    "trace_figures",
    "trace_sections",
    "trace_terminal",
    "trace_words",
    "view",
    "words",
    "write_figures",
]
