"""Writes the generated pages of this folder anew; the tests say when one is out of date."""

from pathlib import Path

from skerry.anatomy.page import sites_page

PAGES = {"sites.md": sites_page}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (Path(__file__).parent / name).write_text(page(), encoding="utf-8")
