"""A contact sheet: one picture under every distortion at every level."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from contrique import images
from contrique.distortions import bank

TILE = (216, 162)  # width, height
LABEL = 150  # width of the column of names
MARGIN = 4


def contact_sheet(image: images.Picture, seed: int) -> images.Picture:
    """The 25 distortions (rows, named) at the 5 levels (columns, with the parameter), beside the picture itself.

    Each tile shows the middle of the picture at its own scale, since a downscaled tile would hide most distortions.

    Args:
        image: RGB. Shape (H, W, 3), uint8, H and W at least 32.
        seed: of the random distortions.
    Returns:
        the sheet, RGB uint8.
    """
    picture = images.as_float(image)
    content = images.content_hash(image.tobytes())
    width = LABEL + 6 * (TILE[0] + MARGIN)
    row_height = TILE[1] + MARGIN
    sheet = Image.new("RGB", (width, 25 * row_height + 24), "white")
    draw = ImageDraw.Draw(sheet)
    font, small = ImageFont.load_default(15), ImageFont.load_default(12)
    for column, heading in enumerate(["pristine", *(f"level {level}" for level in range(1, 6))]):
        draw.text((LABEL + column * (TILE[0] + MARGIN), 4), heading, "black", font)
    for number, name in enumerate(bank.NAMES):
        top = 24 + number * row_height
        draw.text((4, top + 4), f"{number + 1} {name}".replace("_", "\n"), "black", font)
        sheet.paste(_tile(image), (LABEL, top))
        for level in range(1, 6):
            rng = bank.generator(content, name, level, seed)
            tile = _tile(images.as_uint8(bank.distort(picture, name, level, rng)))
            left = LABEL + level * (TILE[0] + MARGIN)
            sheet.paste(tile, (left, top))
            text = f"{bank.parameter(name, level):g}"
            draw.rectangle((left, top, left + 8 + draw.textlength(text, small), top + 16), "black")
            draw.text((left + 4, top + 1), text, "white", small)
    return np.asarray(sheet)


def _tile(picture: images.Picture) -> Image.Image:
    height, width = picture.shape[:2]
    left, top = max(0, (width - TILE[0]) // 2), max(0, (height - TILE[1]) // 2)
    return Image.fromarray(picture[top : top + TILE[1], left : left + TILE[0]])
