"""What an artifact says of itself on the page of a run: flat, for people. Nothing is ever read back from it.

On a cluster metadata pass through ML Metadata, which fails a task on a value that is null, breaks on NaN, gives numbers
without their kind and lists and dicts wrapped. What another stage needs stands in a file of the artifact.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

Metadata = dict[str, str | float | int | bool]


class Facts:
    """A dataclass of what a stage did, that can say so as metadata."""

    def describe(self) -> Metadata:
        """The fields, as `describe` gives them."""
        return describe({name: getattr(self, name) for name in self.__dataclass_fields__})  # type: ignore[attr-defined]


def describe(facts: Mapping[str, Any]) -> Metadata:
    """Facts by name, as metadata can hold them.

    Returns:
        text, finite numbers and booleans as they are; a mapping's entries under `name.key`, a sequence as text;
        without what is None or not finite, for "not there" is what both say.
    Raises:
        TypeError: a value is of another kind.
    """
    flat: Metadata = {}
    for name, value in facts.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{key}": inner for key, inner in describe(value).items()}
        elif isinstance(value, str | bool):
            flat[name] = value
        elif isinstance(value, Sequence):
            flat[name] = ", ".join(map(str, value))
        elif isinstance(value, float | int):
            if math.isfinite(value):
                flat[name] = value
        elif value is not None:
            raise TypeError(f"{name}: {type(value).__name__} is nothing that metadata can hold")
    return flat
