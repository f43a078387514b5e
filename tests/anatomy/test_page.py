"""docs/sites.md is what the tables say."""

from pathlib import Path

from skerry.anatomy.page import sites_page
from skerry.anatomy.sites import ACTIVATION_PARTS, WEIGHT_PARTS


def test_the_page_of_the_sites_is_up_to_date():
    page = Path(__file__).parents[2] / "docs" / "sites.md"
    assert page.read_text(encoding="utf-8") == sites_page(), "run `./dev docs`"


def test_the_page_names_every_part():
    page = sites_page()
    assert [part for part in [*ACTIVATION_PARTS, *WEIGHT_PARTS] if f"`{part}`" not in page] == []
