"""benchmarks/gpu.sh, whole: on a GPU where there is one, else small on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from contrique.config import resolve
from contrique.encoder.weights import load_encoder

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_it_measures_trains_and_brings_the_encoder_back(tmp_path: Path) -> None:
    variables = os.environ | {"PYTHON": sys.executable, "MINUTES": "2", "OMP_NUM_THREADS": "1"}
    script = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), "", str(tmp_path)]
    process = subprocess.run(script, env=variables, capture_output=True, text=True, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert ("CPU smoke" in results["device"]) != torch.cuda.is_available()
    same = results["agreement with the CPU"]
    assert same["loss float32"] < 1e-5
    assert same["gradient float32"] < 1e-4
    assert same["features float32"] < 1e-5
    assert max(same["distort_batch, largest difference of a pixel"].values()) < 0.05
    assert all(way["crops per s"] > 0 for way in results["training step"].values())
    assert len(results["distort_batch, images per s"]) == 26
    assert results["torchrun"].startswith("two steps by 1 process over")
    assert results["training"]["steps"] >= 1
    assert results["training"]["recipe"]["lr"] == resolve("gpu").pretrain.lr
    assert results["training"]["crops per s"] >= 0
    for name in results["encoder"]:
        assert (tmp_path / name).stat().st_size <= 16 * 2**20
    assert len((tmp_path / "history.jsonl").read_text().splitlines()) >= 1
    encoder = tmp_path / "encoder.safetensors"
    command = [sys.executable, "benchmarks/gpu.py", "--join", str(tmp_path), "--out", str(encoder)]
    subprocess.run(command, cwd=ROOT, env=variables | {"PYTHONPATH": str(ROOT)}, check=True)
    weights = load_encoder(encoder).state_dict()
    assert all(value.dtype == torch.float32 for value in weights.values() if value.is_floating_point())
    assert all(value.isfinite().all() for value in weights.values())
