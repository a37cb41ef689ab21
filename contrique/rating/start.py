"""A session that begins, or goes on."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from tqdm import tqdm

from contrique.config import RatingConfig, ServingLimits
from contrique.rating.candidates import Candidate, RatingError, check_folder, find_names, measure
from contrique.rating.selection import Choice, choose
from contrique.rating.session import SESSION, Method, Session
from contrique.scoring.scorer import Scorer
from contrique.text import count_noun
from contrique.walk import Skipped

MIN_PICTURES: Final = 5


def resume(place: Path, folder: Path, method: Method | None, seed: int | None) -> Session:
    """A session that was begun earlier.

    Args:
        place: its folder.
        folder: of the pictures.
        method, seed: None for those of the session.
    Raises:
        RatingError: it is damaged, or was begun for other pictures or with other options.
    """
    session = Session.load(place)
    if Path(session.folder) != folder.resolve():
        raise RatingError(f"{place}: is a session of the pictures in {session.folder}; give another --session")
    for name, option, value in (("method", method, session.method), ("seed", seed, session.seed)):
        if option not in (None, value):
            raise RatingError(f"{place}: was begun with --{name} {value}; go on with that, or give another --session")
    return session


def begin(
    folder: Path,
    *,
    method: Method,
    seed: int,
    choice: Choice,
    config: RatingConfig,
    limits: ServingLimits,
    load_scorer: Callable[[], Scorer],
    skipped: list[Skipped],
) -> Session:
    """A new session: looks at every picture of the folder and chooses which to ask about.

    Args:
        folder: of the pictures.
        method: of rating.
        seed: of every order and choice.
        choice: `model`, or `random`, which needs none.
        config: how many pictures of which kind.
        limits: of decoding.
        load_scorer: the model; called once if it chooses.
        skipped: takes what is not asked about because it cannot be shown.
    Returns:
        the session, not yet written.
    Raises:
        RatingError: it is no folder, or fewer than MIN_PICTURES can be shown.
    """
    check_folder(folder)
    names = list(find_names(folder, skipped))
    scorer = load_scorer() if choice == "model" and len(names) >= MIN_PICTURES else None
    bar = tqdm(names, desc="pictures", unit="img", file=sys.stderr, disable=None)
    measured = list(measure(folder, bar, skipped, limits, scorer))
    candidates = [candidate for candidate, _ in measured]
    features = [values for _, values in measured]
    order = choose(candidates, features, config.count, by=choice, seed=seed, config=config)
    asked, others = order[: config.count], order[config.count :]
    if len(asked) < MIN_PICTURES:
        pictures = count_noun(len(asked), "different picture")
        raise RatingError(f"{folder}: {pictures} can be shown; give at least {MIN_PICTURES}")
    pool = others if len(others) >= config.training else asked
    training = _pick_range(candidates, pool, min(config.training, len(pool)))
    golden = sorted(asked, key=lambda i: -(candidates[i].score or 0))[: min(config.golden, len(asked) // 2)]
    # by name, so that an index says nothing of what the model thinks
    indices = sorted({*asked, *training}, key=lambda i: candidates[i].image)
    place = {i: k for k, i in enumerate(indices)}
    return Session(
        folder=str(folder.resolve()),
        method=method,
        seed=seed,
        model=(scorer.version or "unregistered") if scorer else "",
        pictures=tuple(candidates[i] for i in indices),
        asked=tuple(place[i] for i in asked),
        training=tuple(place[i] for i in training),
        golden=tuple(place[i] for i in golden),
        repeats=config.repeats,
        rounds=config.rounds,
        break_every=config.break_every,
    )


def _pick_range(candidates: Sequence[Candidate], pool: Sequence[int], count: int) -> list[int]:
    """Pictures from the worst to the best of a pool, evenly spaced, so that training shows the whole scale."""
    ranked = sorted(pool, key=lambda i: candidates[i].score or 0)
    return [ranked[round(k)] for k in np.linspace(0, len(ranked) - 1, count)]


def exists(place: Path) -> bool:
    """Whether a folder holds a session."""
    return (place / SESSION).exists()
