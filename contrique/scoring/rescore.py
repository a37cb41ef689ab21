"""A model as a function of manifest rows."""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from contrique.images import Picture
from contrique.scoring.scorer import Scorer, ScorerError, Scores

if TYPE_CHECKING:
    import pandas as pd


class Rescore:
    """A champion, ready to be tested on the pictures of a challenger's test part.

    Rows are found by the content hash of their file, so that rows gathered from several picture sets need not say
    which one they came from.

    Args:
        scorer: the champion.
        sets: picture sets that hold the pictures.
    """

    def __init__(self, scorer: Scorer, sets: Iterable[Path]) -> None:
        from contrique.data.manifest import read_manifest

        self.version = scorer.version
        self._scorer = scorer
        self._rows = {row.sha256: (folder, row) for folder in sets for row in read_manifest(folder).itertuples()}

    def __call__(self, rows: "pd.DataFrame") -> Scores:
        """Raw scores of manifest rows, in order: not clipped, so that ranks are kept. Shape (N,), float64.

        Raises:
            ScorerError: a row's picture is in none of the sets.
            BadImage: a picture cannot be decoded.
        """
        from tqdm import tqdm

        pictures = self.read(rows)
        return self._scorer.raw(
            tqdm(pictures, total=len(rows), desc="champion", unit="img", file=sys.stderr, disable=None)
        )

    def read(self, rows: "pd.DataFrame") -> Iterator[Picture]:
        """Pictures of manifest rows, in order, one at a time. Errors as `__call__`."""
        from contrique.data.manifest import read_picture

        missing = [row.image for row in rows.itertuples() if row.sha256 not in self._rows]
        if missing:
            raise ScorerError(
                f"{len(missing)} pictures to rescore are in none of the picture sets, first {missing[0]}; "
                "give the sets that the features were extracted from"
            )
        return (read_picture(*self._rows[sha256]) for sha256 in rows["sha256"])
