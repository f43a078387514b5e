"""How do we show it? Faces of one summary: words, terminal, one HTML file, figures, notebook. They compute nothing and load no model."""

from .claims_section import claims_section
from .figures import figures, png
from .html import html
from .notebook import notebook
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
    "figures",
    "headline",
    "html",
    "notebook",
    "png",
    "read_claims",
    "section",
    "terminal",
    "trace_figures",
    "trace_sections",
    "trace_terminal",
    "trace_words",
    "view",
    "words",
    "write_figures",
]
