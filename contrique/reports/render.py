"""Templates of page and card."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from contrique import pages

if TYPE_CHECKING:
    import jinja2


def render(template: str, values: Mapping[str, Any]) -> str:
    return _environment().get_template(template).render(values)


def _environment() -> "jinja2.Environment":
    from contrique.reports.figures import readable

    page = pages.environment(trim_blocks=True, lstrip_blocks=True)
    page.filters |= {"number": _format_number, "points": _format_points, "readable": readable}
    return page


def _format_number(value: Any) -> str:
    return "undefined" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def _format_points(value: Any) -> str:
    return "undefined" if value is None else f"{value:+.1f}"
