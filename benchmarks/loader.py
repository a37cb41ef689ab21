"""How many pictures a second does the loader make, and does it keep up with the training step?

    python benchmarks/loader.py PHOTOGRAPHS [--count 4] [--crops 64 256]       # three minutes on two cores

Some photographs are distorted into a picture set, as pretraining reads it, and into PNG files, as the official loader
reads them. "Official" is the way of the paper's public code: Pillow, colour spaces of whole pictures with ICC profiles
built for each, float32 crops. A sample is a picture, from disk to its two views: what our loader makes of it, and with
the colour spaces that our step adds. All run in turn in this process and thread; CPU time, the fastest of the rounds.
Then the demo recipe trains for some steps with one loader process, which gives the share of the time that it waits,
after the first ten steps.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image, ImageCms
from scipy import ndimage
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from contrique import images
from contrique.artifacts import HISTORY
from contrique.config import PretrainConfig, SynthesisConfig, resolve
from contrique.data.manifest import write_manifest
from contrique.data.synthesis import synthesize
from contrique.pretraining.batches import Views
from contrique.pretraining.colour import COLOUR_SPACES, convert_views
from contrique.pretraining.distributed import World
from contrique.pretraining.pretrain import _open_data, pretrain
from contrique.sources.folders import Source, import_folder

RECIPE = replace(resolve("demo").pretrain, authentic_share=0.0, probe_every=0, colour_spaces=COLOUR_SPACES)
WINDOW = cv2.getGaussianKernel(7, 7 / 6)[:, 0]


def in_colour(image: Image.Image, space: int) -> Tensor:
    if space == 0:
        return tv.to_dtype(tv.pil_to_tensor(image.convert("L")), scale=True).expand(3, -1, -1)
    if space == 1:
        rgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        transform = ImageCms.buildTransformFromOpenProfiles(rgb, lab, "RGB", "LAB")
        return tv.to_dtype(tv.pil_to_tensor(ImageCms.applyTransform(image, transform)), scale=True)
    if space == 2:
        return tv.to_dtype(tv.pil_to_tensor(image.convert("HSV")), scale=True)
    tensor = tv.to_dtype(tv.pil_to_tensor(image), scale=True)
    if space == 3:
        pixels = tensor.numpy()
        mean = ndimage.correlate1d(ndimage.correlate1d(pixels, WINDOW, 1), WINDOW, 2)
        return torch.from_numpy(pixels - mean)
    return tensor


def official(path: Path, crop: int, rng: np.random.Generator) -> list[Tensor]:
    image = Image.open(path).convert("RGB")
    scales = [image, image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC)]
    views = []
    for k in rng.permutation(2):
        view = in_colour(scales[k], int(rng.integers(5)))
        view = tv.pad(view, [max(0, crop - view.shape[2]), max(0, crop - view.shape[1])])
        top, left = (int(rng.integers(side - crop + 1)) for side in view.shape[1:])
        view = view[:, top : top + crop, left : left + crop]
        views.append(tv.horizontal_flip(view) if rng.random() < 0.5 else view)
    return views


def official_step(files: list[Path], count: int, crop: int, number: int) -> tuple[Tensor, ...]:
    rng = np.random.default_rng(number)
    samples = [official(files[k], crop, rng) for k in rng.choice(len(files), count)]
    return tuple(torch.stack(view) for view in zip(*samples, strict=True))


def our_step(views: Views, number: int) -> list[Tensor]:
    batch = views[number]
    return [convert_views(view, colours) for view, colours in zip(batch.views, batch.colours, strict=True)]


def views_of(dataset: Path, distorted: Path, config: PretrainConfig) -> Views:
    views, _ = _open_data(dataset, distorted, config, SynthesisConfig(), 0, World(torch.device("cpu")))
    return views


def picture_sets(photographs: Path, count: int, folder: Path) -> tuple[Path, Path, list[Path]]:
    """A picture set of some photographs, the one synthesized from it, and the latter's pictures as PNG files."""
    dataset, distorted = folder / "dataset", folder / "distorted"
    (dataset / "images").mkdir(parents=True)
    paths = sorted(path for path in photographs.rglob("*") if path.suffix.lower() in images.EXTENSIONS)
    for path in paths[:: max(1, len(paths) // count)][:count]:
        (dataset / "images" / path.name).write_bytes(path.read_bytes())
    frame = import_folder(Source(dataset / "images", "pristine"))
    write_manifest(frame.assign(image="images/" + frame["image"]), dataset)
    synthesize(dataset, distorted, seed=0, config=SynthesisConfig(weak_labels_per_photograph=0))
    files = []
    pictures = views_of(dataset, distorted, RECIPE).pictures
    for row in range(len(pictures)):
        files.append(folder / f"{row}.png")
        Image.fromarray(pictures[row]).save(files[-1])
    return dataset, distorted, files


def seconds(work: Callable[[int], object], number: int) -> float:
    start = time.process_time()
    work(number)
    return time.process_time() - start


def measure(dataset: Path, distorted: Path, files: list[Path], crop: int, rounds: int) -> None:
    config = replace(RECIPE, crop=crop)
    count = config.images
    stored = views_of(dataset, distorted, config)
    on_the_fly = views_of(dataset, distorted, replace(config, synthesis="on_the_fly"))
    ways: dict[str, Callable[[int], object]] = {
        "official": lambda number: official_step(files, count, crop, number),
        "ours, stored pictures, loader alone": stored.__getitem__,
        "ours, stored pictures": lambda number: our_step(stored, number),
        "ours, distorted on the fly": lambda number: our_step(on_the_fly, number),
    }
    best = dict.fromkeys(ways, float("inf"))
    for number in range(rounds):
        for way, work in ways.items():
            best[way] = min(best[way], seconds(work, number))
    print(f"\ncrops of {crop}\n\n| | ms a sample | samples/s | times official |\n|---|---|---|---|")
    for way, duration in best.items():
        print(f"| {way} | {1000 * duration / count:.2f} | {count / duration:.0f} | {best['official'] / duration:.1f} |")


def waiting(entry: dict[str, float]) -> tuple[float, float]:
    """Seconds waited and spent, up to an entry of the history."""
    duration = 2 * RECIPE.images * entry["step"] / entry["crops_per_s"]
    return entry["wait_share"] * duration, duration


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--count", type=int, default=4, help="photographs taken")
    parser.add_argument("--crops", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60, help="trained for the share of waiting")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        dataset, distorted, files = picture_sets(options.photographs, options.count, Path(folder))
        for crop in options.crops:
            measure(dataset, distorted, files, crop, options.rounds)
        config = replace(RECIPE, steps=options.steps, threads=1)
        pretrain(dataset, distorted, Path(folder, "run"), config=config)
        history = [json.loads(line) for line in Path(folder, "run", HISTORY).read_text().splitlines()]
    wait, duration = waiting(history[-1])[0] - waiting(history[0])[0], waiting(history[-1])[1] - waiting(history[0])[1]
    print(f"\ntraining, one loader process: waits {wait / duration:.1%} of {duration:.0f} s")


if __name__ == "__main__":
    main()
