"""The page of a validation, readable without a network."""

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

from contrique import pages
from contrique.text import escape_control


def escape(text: str) -> str:
    """Text for a page of Great Expectations, which shows it as it is, and takes `$name` for a blank to fill in."""
    return html.escape(escape_control(text)).replace("$", "&#36;")


def render(result: Any, facts: Mapping[str, Any], failures: Sequence[str], expectations: int) -> str:
    """The page: what failed, what the set holds, and each expectation.

    Great Expectations' own page takes its style and icons from the network; its sections are rendered here without
    them, and a policy keeps a file name with markup in it from running as a script.

    Args:
        result: of Great Expectations, about escaped names (`escape`).
        facts: what the set holds, by what it is called.
        failures: a line for each failed expectation.
        expectations: how many were checked.
    """
    from great_expectations.render.renderer.page_renderer import ValidationResultsPageRenderer
    from great_expectations.render.view import DefaultJinjaSectionView

    view = DefaultJinjaSectionView()
    sections = "".join(
        view.render({"section": section.to_json_dict(), "section_loop": {"index": number}})
        for number, section in enumerate(ValidationResultsPageRenderer().render(result).sections, start=1)
    )
    sections = re.sub(r' href="\.\./[^"]*"', "", sections)  # to pages of a documentation site that is not there
    return pages.render(
        "validation.html", {"facts": facts, "failures": failures, "expectations": expectations, "sections": sections}
    )
