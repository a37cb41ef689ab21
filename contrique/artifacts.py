"""Every file name that one stage writes and another reads."""

from typing import Final

MANIFEST = "manifest.parquet"
LABELS = "labels.csv"
PIN = "data.dvc"
LINEAGE = "lineage.json"
FEATURES = "features.npz"
COEFFICIENTS: Final = "ridge.npz"
DESCRIPTION: Final = "regressor.json"
FULL_REFERENCE: Final = "full_reference.npz"  # beside the regressor
EVALUATION: Final = "evaluation.json"
TEST_SCORES: Final = "test_scores.parquet"
ENCODER = "encoder.safetensors"
HISTORY = "history.jsonl"
SUMMARY: Final = "summary.json"  # what a stage did, beside what it made
CHECKPOINTS = "checkpoints"
REGRESSOR = "regressor"
MODEL_CARD = "model_card.md"  # likewise
DRIFT_REFERENCE: Final = "drift.npz"  # beside the regressor
SCORES: Final = "scores.parquet"
DRIFT_VERDICT: Final = "drift.json"
