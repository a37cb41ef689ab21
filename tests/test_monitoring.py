"""Stability indices against a hand count and against chance, and the whole of scoring a folder with a model."""

import json

import browser as chromium
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from contrique.artifacts import DRIFT_REFERENCE, SCORES
from contrique.config import DriftConfig
from contrique.monitoring import (
    Change,
    DriftError,
    DriftFound,
    Reference,
    alarm,
    changes,
    judge_set,
    psi,
    read_reference,
)

CONFIG = DriftConfig()


def reference(seed: int = 0, n: int = 400) -> Reference:
    rng = np.random.default_rng(seed)
    kinds = rng.choice(["jpeg", "pristine", "gaussian_blur"], n, p=[0.5, 0.3, 0.2])
    return Reference(rng.normal(0.5, 0.1, n), rng.gamma(20, 0.05, n), kinds, np.zeros(4))


def compare(old: Reference, new: Reference, **config) -> dict[str, Change]:
    results = changes(old, new.scores, new.distances, list(new.types), DriftConfig(**config))
    return {change.name: change for change in results}


def test_psi_by_hand():
    """Of 30 : 70 against 50 : 50, half a picture added to each bin."""
    p, q = np.array([30.5, 70.5]) / 101, np.array([50.5, 50.5]) / 101
    assert psi([30, 70], [50, 50]) == pytest.approx(sum((q - p) * np.log(q / p)))
    assert psi([30, 70], [30, 70]) == 0
    assert np.isfinite(psi([0, 100], [100, 0]))


def test_equal_distributions_do_not_drift_and_shifted_ones_do():
    same, other = reference(1), reference(2)
    assert not any(change.drifted for change in compare(reference(), same).values())
    shifted = Reference(other.scores + 0.1, other.distances * 1.5, np.repeat("jpeg", 400), other.mean)
    assert all(change.drifted for change in compare(reference(), shifted).values())


def test_each_distribution_is_judged_alone():
    new = reference(3)
    results = compare(reference(), Reference(new.scores - 0.2, new.distances, new.types, new.mean))
    assert {name for name, change in results.items() if change.drifted} == {"scores"}


def test_psi_by_chance_is_what_the_law_says():
    """The limit is passed as often as the significance says by samples of one distribution."""
    rng = np.random.default_rng(0)
    p, n, m = np.full(10, 0.1), 300, 200
    values = [psi(rng.multinomial(n, p), rng.multinomial(m, p)) for _ in range(4000)]
    limit = stats.chi2.ppf(0.95, 9) * (1 / n + 1 / m)
    assert np.mean(np.array(values) > limit) == pytest.approx(0.05, abs=0.012)


def test_a_handful_of_pictures_must_differ_more_than_chance_makes_them():
    rng = np.random.default_rng(5)
    small = reference(6, 12)
    shift = Reference(small.scores + rng.normal(0.03, 0.01, 12), small.distances, small.types, small.mean)
    change = compare(reference(), shift)["scores"]
    assert change.psi > CONFIG.psi, "a threshold alone would cry wolf"
    assert not change.drifted


def test_the_order_of_the_pictures_does_not_matter():
    old, new = reference(), reference(4)
    order = np.random.default_rng(0).permutation(400)
    permutation = Reference(new.scores[order], new.distances[order], new.types[order], new.mean)
    assert compare(old, new) == compare(old, permutation)


def test_kolmogorov_smirnov_is_scipys():
    old, new = reference(), reference(4)
    assert compare(old, new)["scores"].ks_p == stats.ks_2samp(old.scores, new.scores).pvalue


def test_a_type_that_the_reference_never_had_counts():
    results = compare(reference(), Reference(reference().scores, reference().distances, np.repeat("jitter", 400), None))
    assert results["types"].drifted
    assert "jitter" in results["types"].bins


def test_equal_scores_throughout():
    """One bin: nothing to say, and no division by zero."""
    flat = Reference(np.full(50, 0.5), np.full(50, 1.0), np.array([], dtype=str), np.zeros(4))
    results = compare(flat, flat)
    assert [change.drifted for change in results.values()] == [False, False]
    assert "types" not in results


@pytest.fixture
def write_scores(tmp_path):
    """What `score_set` leaves, with scores far below the reference."""

    def write(n: int = 60, shift: float = -0.3):
        new = reference(7, n)
        table = pd.DataFrame(
            {
                "path": [f"{i}.png" for i in range(n + 1)],
                "score": [*np.linspace(0, 100, n), None],
                "raw": [*(new.scores + shift), None],
                "mean_distance": [*new.distances, None],
                "type": [*new.types, None],
                "model": [*["7"] * n, None],
                "error": [*[None] * n, "broken"],
            }
        )
        folder = tmp_path / "scores"
        folder.mkdir()
        table.to_parquet(folder / SCORES)
        old = reference()
        arrays = {"scores": old.scores, "distances": old.distances, "types": old.types, "mean": old.mean}
        np.savez(folder / DRIFT_REFERENCE, **arrays)
        return folder

    return write


def test_verdict_and_page(write_scores, tmp_path):
    verdict, page = tmp_path / "verdict.json", tmp_path / "page.html"
    judge_set(write_scores(), verdict, page, config=CONFIG)
    document = json.loads(verdict.read_text())
    assert (document["drifted"], document["model"], document["pictures"], document["failed"]) == (True, "7", 60, 1)
    assert document["reason"].startswith("scores: PSI")
    assert "0.png" in page.read_text()
    assert chromium.inspect(page) == []
    with pytest.raises(DriftFound, match="version 7") as error:
        alarm(verdict, fail=True)
    assert error.value.exit_status == 3
    alarm(verdict, fail=False)


def test_no_drift_no_alarm(write_scores, tmp_path):
    verdict = tmp_path / "verdict.json"
    judge_set(write_scores(shift=0.0), verdict, tmp_path / "page.html", config=CONFIG)
    alarm(verdict, fail=True)
    assert json.loads(verdict.read_text())["reason"] == "no distribution has changed"


def test_too_few_pictures_say_nothing(write_scores, tmp_path):
    with pytest.raises(DriftError, match=r"5 scored pictures .*\(drift\.min_pictures\)"):
        judge_set(write_scores(5), tmp_path / "verdict.json", tmp_path / "page.html", config=CONFIG)


@pytest.mark.parametrize("keep", [0, 100])
def test_a_damaged_reference_is_named(write_scores, keep):
    path = write_scores() / DRIFT_REFERENCE
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DriftError, match=r"drift\.npz: no readable reference"):
        read_reference(path.parent)


def test_a_model_from_before_references_were_kept(tmp_path):
    with pytest.raises(DriftError, match="train and register the model again"):
        read_reference(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"scores": np.array([np.nan] * 9)},
        {"distances": np.array([-1.0] * 9)},
        {"distances": np.ones(8)},
        {"types": np.array(["jpeg"] * 8)},
        {"mean": np.array([1j])},
    ],
)
def test_a_reference_with_values_that_none_has_is_refused(tmp_path, change):
    whole = {"scores": np.ones(9), "distances": np.ones(9), "types": np.array(["jpeg"] * 9), "mean": np.zeros(4)}
    np.savez(tmp_path / DRIFT_REFERENCE, **whole)
    assert len(read_reference(tmp_path).scores) == 9
    np.savez(tmp_path / DRIFT_REFERENCE, **(whole | change))
    with pytest.raises(DriftError, match=r"drift\.npz: no readable reference"):
        read_reference(tmp_path)
