"""The page of a validation, readable without a network."""

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

from contrique.text import escape_control

# Great Expectations' own page takes its style and icons from the network; its sections are rendered here without them.
# The policy also keeps a file name with markup in it from running as a script.
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: .5rem 0; } td, th { border: 1px solid #ddd; padding: .25rem .6rem;
text-align: left; vertical-align: top; overflow-wrap: anywhere; } .ge-section { border-top: 1px solid #ddd; }
.failed { background: #fdecea; padding: .5rem 1rem; } .met { background: #e9f6ec; padding: .5rem 1rem; }
.collapse, [data-toggle=collapse], .d-none { display: none; } .badge { background: #eee; padding: 0 .3rem; }
.fa-check-circle::before { content: "\\2713"; color: #1a7f37; } .fa-times::before { content: "\\2717"; color: #b3261e; }
"""


def escape(text: str) -> str:
    """Text for a page of Great Expectations, which shows it as it is, and takes `$name` for a blank to fill in."""
    return html.escape(escape_control(text)).replace("$", "&#36;")


def render(result: Any, facts: Mapping[str, Any], failures: Sequence[str], expectations: int) -> str:
    """The page: what failed, what the set holds, and each expectation.

    Args:
        result: of Great Expectations, about escaped names (`escape`).
        facts: what the set holds, by what it is called.
        failures: a line for each failed expectation.
        expectations: how many were checked.
    """
    from great_expectations.render.renderer.page_renderer import ValidationResultsPageRenderer
    from great_expectations.render.view import DefaultJinjaSectionView

    if failures:
        verdict = f"<div class=failed><p>{len(failures)} of {expectations} expectations failed.</p><ul>"
        verdict += "".join(f"<li>{escape(failure)}</li>" for failure in failures) + "</ul></div>"
    else:
        verdict = f"<div class=met>All {expectations} expectations are met.</div>"
    table = "".join(f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>" for name, value in facts.items())
    view = DefaultJinjaSectionView()
    sections = "".join(
        view.render({"section": section.to_json_dict(), "section_loop": {"index": number}})
        for number, section in enumerate(ValidationResultsPageRenderer().render(result).sections, start=1)
    )
    sections = re.sub(r' href="\.\./[^"]*"', "", sections)  # to pages of a documentation site that is not there
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Validation of the picture set</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>{_STYLE}</style></head>
<body><h1>Validation of the picture set</h1>{verdict}<table>{table}</table>{sections}</body></html>
"""
