"""A challenger is judged beside the champion of the registry, on the same pictures."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pandas as pd

from contrique.config import Config, EvaluationConfig, RegressorConfig
from contrique.encoder.weights import EncoderFile
from contrique.evaluation import gaming
from contrique.evaluation.evaluate import Champion, Evaluation, evaluate_set
from contrique.evaluation.extract import keep_extract
from contrique.registry.versions import Registry
from contrique.regressor.fit import fit_set
from contrique.regressor.head import RegressorSummary
from contrique.scoring.bundled import find_prior
from contrique.scoring.rescore import Rescore
from contrique.scoring.scorer import Scorer


def fit_challenger(features: Path, encoder: Path, out: Path, *, config: RegressorConfig) -> RegressorSummary:
    """`fit_set`, with the bundled head's scores where the encoder is the bundled one or was trained on from it.

    Args:
        features: feature set.
        encoder: file of the encoder that made the features.
        out: folder to write.
        config: the alphas, and whether those scores shall be a feature.
    Raises:
        RegressorError, EvaluationError: as `fit_set`.
        BundleError: a file of the bundled model is damaged.
        EncoderError: `encoder` is no encoder.
    """
    return fit_set(features, out, config=config, prior=find_prior(EncoderFile(encoder), config))


def evaluate_challenger(
    features: Path,
    encoder: Path,
    regressor: Path,
    out: Path,
    extract: Path,
    *,
    sets: Sequence[Path],
    config: Config,
    seed: int,
) -> Evaluation:
    """`evaluate_set`, with the champion, if there is one, rescored on the test pictures and never remembered.

    Args:
        features: feature set of the challenger.
        encoder: file of its encoder.
        regressor: folder of its head.
        out: folder to write.
        extract: folder to write, of the pictures that later stages show or ask for.
        sets: the dataset and the picture set synthesized from it, which hold the test pictures.
        config: resolved configuration.
        seed: of the splits, of the resampling behind each interval, and of the pictures that are attacked.
    Raises:
        RegistryError: the registry cannot be reached, or the champion's files cannot be fetched.
        EvaluationError, LeakError: as `evaluate_set`.
        ExtractError: as `keep_extract`.
    """
    challenger, champion = Scorer(encoder, regressor), Registry(config.registry).load_champion()
    attacked = config.evaluation.gaming_pictures > 0
    evaluation = evaluate_set(
        features,
        regressor,
        out,
        config=config.evaluation,
        seed=seed,
        alphas=config.regressor,
        prior=find_prior(challenger.encoder_file, config.regressor),
        champion=Champion(Rescore(champion, sets), champion.version, champion.head) if champion else None,
        attack=partial(attack_test_part, challenger, champion, sets, config.evaluation, seed) if attacked else None,
    )
    keep_extract(features, out, sets, extract, seed=seed)
    return evaluation


def attack_test_part(
    challenger: Scorer,
    champion: Scorer | None,
    sets: Sequence[Path],
    config: EvaluationConfig,
    seed: int,
    rows: pd.DataFrame,
) -> gaming.Gaming:
    """Try to raise the scores of both models on a few pictures of the test part.

    Args:
        challenger, champion: the models; champion None if there is none.
        sets: picture sets that hold the pictures.
        config: how many, and what is done to them.
        seed: of the sample and of the bootstrap.
        rows: manifest rows of the test part.
    Raises:
        ScorerError: a picture is in none of the sets.
        BadImage: a picture cannot be decoded.
    """
    sample = rows.iloc[gaming.pick_sample(len(rows), config.gaming_pictures, seed)]
    return gaming.attack_rivals(
        challenger,
        champion,
        list(Rescore(challenger, sets).read(sample)),
        list(sample["reference"]),
        side=config.gaming_side,
        names=gaming.NAMES if config.gaming_gradient else tuple(gaming.ATTACKS),
        resamples=config.resamples,
        confidence=config.confidence,
        seed=seed,
    )
