"""Pages and texts from the templates of this package; every value in HTML and in Markdown is escaped."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from contrique.text import Markdown, count_noun, escape_control, escape_markdown

if TYPE_CHECKING:
    import jinja2


def environment(**options: Any) -> "jinja2.Environment":
    """Where the templates are found; a name that a template uses and nobody gives is an error.

    Whatever a template prints is escaped for its format. In HTML, `safe` marks what is HTML already; in Markdown, the
    type `text.Markdown` does, and `code` is for an indented line.

    Args:
        options: as `jinja2.Environment` takes them.
    """
    import jinja2

    loader, escaped = jinja2.PackageLoader("contrique"), jinja2.select_autoescape(("html",))
    page = jinja2.Environment(
        loader=loader, autoescape=escaped, undefined=jinja2.StrictUndefined, finalize=_make_finalizer(), **options
    )
    page.filters["code"] = lambda text: Markdown(escape_control(text))  # of an indented line, where no mark counts
    page.filters["count_noun"] = count_noun
    return page


def _make_finalizer() -> Any:
    import jinja2

    @jinja2.pass_context
    def finalize(context: "jinja2.runtime.Context", value: Any) -> Any:
        if (context.name or "").endswith(".md"):
            return escape_markdown(value if isinstance(value, str) else str(value))
        if type(value) is str:  # jinja2 escapes it; what is HTML already has a type of its own
            return escape_control(value, keep="\n\t")
        return value

    return finalize


def render(template: str, values: Mapping[str, Any]) -> str:
    """A template, filled."""
    return environment().get_template(template).render(values)
