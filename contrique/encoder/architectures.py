"""The encoder's architectures, for those who need no PyTorch to know them."""

from typing import Final, Literal

from contrique.errors import ContriqueError

Arch = Literal["resnet18", "resnet50"]
WIDTHS: Final[dict[str, int]] = {"resnet18": 512, "resnet50": 2048}  # channels of conv5
MIN_SIDE: Final = 64  # pixels of a picture: at half scale one cell of conv5 is left


class EncoderError(ContriqueError):
    """An encoder file that cannot be loaded; the message names the file and what differs."""
