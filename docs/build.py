"""Writes the generated pages of this folder anew; the tests say when one is out of date."""

from pathlib import Path

from skerry.anatomy.page import sites_page
from skerry.claims.page import claims_page
from skerry.outliers.page import json_page, json_schema_page, runs_page

PAGES = {
    "sites.md": sites_page,
    "claims.md": claims_page,
    "runs.md": runs_page,
    "json.md": json_page,
    "audit.schema.json": json_schema_page,
}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (Path(__file__).parent / name).write_text(page(), encoding="utf-8")
