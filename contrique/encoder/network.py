"""The encoder (a ResNet to conv5), the projector of pretraining, and their files."""

from functools import partial

import torch
from torch import Tensor, nn

from contrique.encoder.architectures import WIDTHS, EncoderError


class Encoder(nn.Module):
    """ResNet to conv5, trained from scratch (spec section 3). Standard torchvision layer names.

    Args:
        arch: `resnet18` (width 512) or `resnet50` (width 2048).
        seed: of the initial weights; the global generator is left as it was.
        views: that a training batch holds, one after another, each normalised by its own statistics.
    """

    def __init__(self, arch: str = "resnet50", seed: int = 0, views: int = 1) -> None:
        super().__init__()
        import torchvision

        if arch not in WIDTHS:
            raise EncoderError(f"unknown encoder '{arch}'; choose one of {', '.join(WIDTHS)}")
        self.arch, self.views = arch, views
        self.width = WIDTHS[arch]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = getattr(torchvision.models, arch)(weights=None, norm_layer=partial(ViewNorm, views=views))
        for layer in net.modules():
            if isinstance(layer, nn.Conv2d) and (layer.kernel_size, layer.stride) == ((3, 3), (1, 1)):
                layer.__class__ = Conv3x3
        for name, child in net.named_children():
            if name not in ("avgpool", "fc"):
                self.add_module(name, child)

    def maps(self, images: Tensor) -> Tensor:
        """conv5 activations.

        Args:
            images: RGB in [0, 1] (or a view's colour space). Shape (N, 3, H, W), H and W at least 32.
        Returns:
            Shape (N, width, ceil(H / 32), ceil(W / 32)).
        """
        x = images
        for child in self.children():
            x = child(x)
        return x

    def forward(self, images: Tensor) -> Tensor:
        """Frozen features h: global average pool of conv5, L2-normalised. Shape (N, width), float32."""
        return nn.functional.normalize(self.maps(images).float().mean((2, 3)), dim=1)

    def local(self, images: Tensor, pool: int = 2) -> Tensor:
        """Local vectors of pretraining: adaptive average pool to (pool, pool), each L2-normalised.

        Returns:
            Shape (N, pool * pool, width).
        """
        pooled = nn.functional.adaptive_avg_pool2d(self.maps(images), pool)
        return nn.functional.normalize(pooled.flatten(2).transpose(1, 2), dim=2)


class ViewNorm(nn.BatchNorm2d):
    """Batch norm that in training takes the statistics of each view apart, as if the views came in turn.

    One pass over all views at once is faster than one pass each, and the paper's statistics are a view's own.

    Args:
        channels: C.
        views: that a batch holds one after another, in equal parts.
    """

    def __init__(self, channels: int, views: int = 1) -> None:
        super().__init__(channels)
        self.views = views

    def forward(self, x: Tensor) -> Tensor:
        """Shape (N, C, H, W) -> the same; N a multiple of `views` in training."""
        if not self.training or self.views == 1:
            return super().forward(x)
        normalise = super().forward
        return torch.cat([normalise(view) for view in x.chunk(self.views)])


class Conv3x3(nn.Conv2d):
    """Convolution 3 x 3 of stride 1 that, in training on a CPU, is a matrix product where the map is 2 x 2.

    On such a map five of nine taps fall on the padding, and the library's gradient with respect to the weight is slow:
    a training step of ResNet-18 on views of 64 pixels is 1.14 times as fast.
    """

    def forward(self, x: Tensor) -> Tensor:
        """As `nn.Conv2d`."""
        if self.training and x.device.type == "cpu" and x.shape[2:] == (2, 2):
            y: Tensor = _Dense2x2.apply(x, self.weight.to(x.dtype))
            return y
        return super().forward(x)


class _Dense2x2(torch.autograd.Function):
    """3 x 3 convolution of a 2 x 2 map: each of 4 pixels out sees all 4 in, by 2 x 2 of the taps."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, weight: Tensor) -> Tensor:
        taps = weight.permute(0, 2, 3, 1)
        dense = torch.stack([taps[window] for window in _WINDOWS]).view(4 * len(weight), -1)
        pixels = x.permute(0, 2, 3, 1).reshape(len(x), -1)
        ctx.save_for_backward(pixels, dense)
        return (pixels @ dense.T).view(len(x), 2, 2, -1).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, Tensor]:
        pixels, dense = ctx.saved_tensors  # type: ignore[attr-defined]
        count, channels = grads[0].shape[:2]
        grad = grads[0].permute(0, 2, 3, 1).reshape(count, -1)
        parts = (grad.T @ pixels).view(4, channels, 2, 2, -1)
        taps = parts.new_zeros(channels, 3, 3, parts.shape[-1])
        for part, window in zip(parts, _WINDOWS, strict=True):
            taps[window] += part
        return (grad @ dense).view(count, 2, 2, -1).permute(0, 3, 1, 2), taps.permute(0, 3, 1, 2)


# of each pixel out in turn, the taps that fall on the map
_WINDOWS = [(slice(None), slice(1 - y, 3 - y), slice(1 - x, 3 - x)) for y in (0, 1) for x in (0, 1)]


class Projector(nn.Sequential):
    """Two linear layers without bias, each followed by batch norm, ReLU between (spec section 3).

    Args:
        width: of the local vectors.
        projection: d of z.
        seed: of the initial weights.
    """

    def __init__(self, width: int, projection: int = 128, seed: int = 0) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + 1)
            super().__init__(
                nn.Linear(width, width, bias=False),
                nn.BatchNorm1d(width),
                nn.ReLU(inplace=True),
                nn.Linear(width, projection, bias=False),
                nn.BatchNorm1d(projection),
            )
