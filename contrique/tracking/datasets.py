"""The picture sets that a run used, as MLflow lists them: a name, the DVC hash as digest, the source, the counts."""

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final, Literal

from contrique.artifacts import LINEAGE
from contrique.errors import one_line
from contrique.tracking.store import RegistryError

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

Context = Literal["training", "evaluation"]
_DIGEST_CHARS: Final = 36  # of MLflow's column, which is as long as the hash of a folder by DVC
_NAME_CHARS: Final = 200
_KINDS: Final = {"source": str, "hash": str, "counts": dict, "revision": str, "sources": dict}  # that MLflow is told
_SUFFIX: Final[dict[Context, str]] = {"training": "", "evaluation": ", test part"}  # one set has one context in a run


def read_lineage(dataset: Path) -> dict[str, Any]:
    """What `fetch` wrote of a picture set; empty for a set without, which was made by hand.

    Raises:
        RegistryError: the file is damaged, or is none that `fetch` writes.
    """
    path = dataset / LINEAGE
    if not path.is_file():
        return {}
    try:
        lineage = json.loads(path.read_text())
    except ValueError as error:
        raise RegistryError(f"{path}: not readable ({one_line(error)}); fetch the set again, or remove it") from error
    lineage = lineage if isinstance(lineage, dict) else {}
    wrong = [key for key, kind in _KINDS.items() if not isinstance(lineage.get(key), kind)]
    if wrong:
        raise RegistryError(f"{path}: says nothing usable of {', '.join(wrong)}; fetch the set again, or remove it")
    return lineage


def name_dataset(lineage: Mapping[str, Any], context: Context) -> tuple[str, str]:
    """Name and digest by which MLflow knows a picture set.

    Args:
        lineage: content of its `lineage.json`.
        context: what it was used for.
    """
    source = str(lineage["source"]).rstrip("/")
    name = PurePosixPath(source).name or source or "pictures"
    return name[:_NAME_CHARS] + _SUFFIX[context], str(lineage["hash"])[:_DIGEST_CHARS]


def describe_dataset(lineage: Mapping[str, Any], context: Context) -> "DatasetInput":
    """A picture set as an input of a run. Arguments as `name_dataset`."""
    from mlflow.entities import Dataset, DatasetInput, InputTag
    from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

    name, digest = name_dataset(lineage, context)
    source = str(lineage["source"])
    parts = {
        part: count for part, count in lineage["counts"].items() if (context == "training") != part.startswith("test/")
    }
    profile = {"num_rows": sum(parts.values()), "pictures": parts, "revision": lineage["revision"]}
    dataset = Dataset(
        name=name,
        digest=digest,
        source_type="s3" if source.startswith("s3://") else "local",
        source=json.dumps({"uri": source, "sources": lineage["sources"]}),
        profile=json.dumps(profile),
    )
    return DatasetInput(dataset, [InputTag(MLFLOW_DATASET_CONTEXT, context)])
