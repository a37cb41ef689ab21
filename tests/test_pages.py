"""Whatever a template prints is escaped for its format, so that no name of a stranger's is obeyed."""

import html
import re

import jinja2
import mistune
import pytest
from markdown_it import MarkdownIt

from contrique import pages
from contrique.text import Markdown, escape_control, escape_markdown

NAMES = [
    "<img src=x onerror=alert(1)>",
    "# heading",
    "[link](javascript:alert(1))",
    "![image](https://evil.test/x.png)",
    "https://evil.test/x www.evil.test a@evil.test",
    "<https://evil.test>",
    "- item",
    "+ item",
    "1. item",
    "2) item",
    "3.",
    "-0.5",
    "- - -",
    ":--",
    "> quote",
    "a | b",
    "`code` ```",
    "**bold** _it_ ~~gone~~",
    "$\\frac{",
    "$$x$$",
    "a\n# heading\n\n    code",
    "a\n===",
    "---",
    "[x]: https://evil.test",
    "&lt;b&gt; &#60;b&#62;",
    "<script>alert(1)</script>",
    ":smile: \\# ^up^ {{ 7 * 7 }}",
    "a\x1b[2J\u202egnp",
    "||||",
    "[^1]: note",
    "<!-- comment",
]


@pytest.fixture(scope="module", params=["markdown-it", "mistune"])
def to_html(request):
    """CommonMark with HTML and tables; and a renderer with links that need no marks, footnotes and mathematics."""
    if request.param == "markdown-it":
        return MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render
    return mistune.create_markdown(escape=False, plugins=["url", "table", "strikethrough", "footnotes", "math"])


@pytest.mark.parametrize("name", NAMES)
def test_in_markdown_a_name_is_text_and_nothing_else(name, to_html):
    markdown = escape_markdown(name)
    text = escape_control(" ".join(name.split()))
    assert text_of(to_html(f"{markdown}\n"), "p") == text
    assert text_of(to_html(f"- {markdown}\n"), "ul", "li") == text
    assert text_of(to_html(f"### {markdown}\n"), "h3") == text
    table = to_html(f"| name |\n|---|\n| {markdown} |\n")
    assert text_of(table, "table", "thead", "tbody", "tr", "th", "td").split("\n")[-1].strip() == text
    assert "$" not in markdown


def text_of(page: str, *tags: str) -> str:
    """The text of a page that holds these elements and no others."""
    assert set(re.findall(r"</?([a-z]\w*)[^>]*>", page)) == set(tags)
    assert "<!" not in page
    return "\n".join(line for line in html.unescape(re.sub(r"<[^>]*>", "", page)).splitlines() if line.strip())


def test_markdown_is_escaped_once():
    assert escape_markdown(escape_markdown("# a_b")) == "\\# a\\_b"
    assert escape_markdown(Markdown("**5**")) == "**5**"
    assert escape_markdown("-0.5") == "-0.5"
    assert escape_markdown("0.830") == "0.830"
    assert escape_markdown("plain words, -0.5 and 3.7 (LIVE-IQA)") == "plain words, -0.5 and 3.7 (LIVE-IQA)"


@pytest.mark.parametrize("suffix", ["html", "md"])
def test_every_value_of_a_template_is_escaped(monkeypatch, suffix):
    template = "{{ name }} {% for each in names %}{{ each }}{% endfor %}"
    environment = pages.environment()
    environment.loader = jinja2.DictLoader({f"page.{suffix}": template})
    page = environment.get_template(f"page.{suffix}").render(name="<b>\x1b[0m", names=["[a](b)<i>"])
    assert "<b>" not in page
    assert "<i>" not in page
    assert "\x1b" not in page
    assert suffix == "html" or "[a]" not in page


@pytest.mark.parametrize("template", ["report.html", "drift.html", "benchmark_page.html"])
def test_pages_forbid_scripts_and_outside_addresses(template):
    source = pages.environment().loader.get_source(pages.environment(), template)[0]
    assert "default-src 'none'" in source
    assert "<script" not in source
