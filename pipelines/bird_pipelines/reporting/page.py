"""A page from a template of this room: text is escaped, and a name that is not given is an error."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bird_pipelines.marks import difference, p_value

__all__ = ["page"]


def page(template: str, values: Mapping[str, Any], filters: Mapping[str, Callable[..., Any]] | None = None) -> str:
    """`templates/TEMPLATE.html.j2` filled in. `filters` are further ones that it calls."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"p_value": p_value, "difference": difference, **(filters or {})}
    return environment.get_template(f"{template}.html.j2").render(**values)
