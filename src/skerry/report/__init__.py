"""How do we show it? Faces of one summary: words, terminal, one HTML file, figures, notebook. They compute nothing and load no model."""

from .figures import figures, png
from .html import html
from .notebook import notebook
from .terminal import terminal, view
from .words import headline, section, words

__all__ = ["figures", "headline", "html", "notebook", "png", "section", "terminal", "view", "words"]
