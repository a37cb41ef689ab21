"""A challenger is judged beside the champion of the registry, on the same pictures."""

from collections.abc import Sequence
from pathlib import Path

from contrique.config import Config
from contrique.evaluation.evaluate import Evaluation, evaluate_set
from contrique.evaluation.extract import keep_extract
from contrique.registry.versions import Registry
from contrique.scoring.rescore import Rescore


def evaluate_challenger(
    features: Path, regressor: Path, out: Path, extract: Path, *, sets: Sequence[Path], config: Config, seed: int
) -> Evaluation:
    """`evaluate_set`, with the champion, if there is one, rescored on the test pictures and never remembered.

    Args:
        features: feature set of the challenger.
        regressor: folder of its head.
        out: folder to write.
        extract: folder to write, of the pictures that later stages show or ask for.
        sets: the dataset and the picture set synthesized from it, which hold the test pictures.
        config: resolved configuration.
        seed: of the splits and of the resampling behind each interval.
    Raises:
        RegistryError: the registry cannot be reached, or the champion's files cannot be fetched.
        EvaluationError, LeakError: as `evaluate_set`.
        ExtractError: as `keep_extract`.
    """
    champion = Registry(config.registry).load_champion()
    judged = evaluate_set(
        features,
        regressor,
        out,
        config=config.evaluation,
        seed=seed,
        alphas=config.regressor,
        champion=Rescore(champion, sets) if champion else None,
        champion_version=champion.version if champion else "",
        champion_head=champion.head if champion else None,
    )
    keep_extract(features, out, sets, extract, seed=seed)
    return judged
