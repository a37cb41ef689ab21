"""Pages and texts from the templates of this package; every value in HTML is escaped."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jinja2


def environment(**options: Any) -> "jinja2.Environment":
    """Where the templates are found; a name that a template uses and nobody gives is an error.

    Args:
        options: as `jinja2.Environment` takes them.
    """
    import jinja2

    loader, escaped = jinja2.PackageLoader("contrique"), jinja2.select_autoescape(("html",))
    return jinja2.Environment(loader=loader, autoescape=escaped, undefined=jinja2.StrictUndefined, **options)


def render(template: str, values: Mapping[str, Any]) -> str:
    """A template, filled."""
    return environment().get_template(template).render(values)
