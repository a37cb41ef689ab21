"""Figures of the report: Matplotlib drawings as inline SVG that takes its colours from the page, light or dark."""

import functools
import html
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from contrique.text import escape_control, shorten

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


# Stand-ins that Matplotlib draws with and `svg` replaces by the page's own colours.
INK, MUTED, GRID, ACCENT, SECOND = "#010203", "#040506", "#070809", "#0a0b0c", "#0d0e0f"
_THEME = {INK: "--ink", MUTED: "--muted", GRID: "--line", ACCENT: "--accent", SECOND: "--second"}
_STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.parse_math": False,  # names of distortions are a stranger's
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
}
MAX_NAME = 120  # characters of a name in a text
MAX_TICK = 32  # in a figure
WIDTH = 4.8  # inches: text that is readable on a phone and not too large beside a second figure
# The seven groups of KADID-10k (Lin, Hosu and Saupe, QoMEX 2019), with colours that tell apart on white and on black.
FAMILIES: dict[str, tuple[str, ...]] = {
    "blur": ("gaussian_blur", "lens_blur", "motion_blur"),
    "colour": ("color_diffusion", "color_shift", "color_quantization", "saturation_hsv", "saturation_lab"),
    "compression": ("jpeg2000", "jpeg"),
    "noise": ("white_noise", "color_noise", "impulse_noise", "multiplicative_noise", "denoise"),
    "brightness": ("brighten", "darken", "mean_shift"),
    "spatial": ("jitter", "non_eccentricity", "pixelate", "quantization", "color_block"),
    "sharpness, contrast": ("sharpen", "contrast"),
}
_COLOURS = dict(
    zip(FAMILIES, ("#2f7fd0", "#cc6fa8", "#d99a00", "#0f9a6c", "#45b5e6", "#d95f0e", "#8a6fd6"), strict=True)
)
_MARKERS = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼"}  # Matplotlib's, and the same as text
_NONE = "pristine or authentic"
P = ParamSpec("P")
T = TypeVar("T")


def _styled(draw: Callable[P, T]) -> Callable[P, T]:
    """`draw` with the house style, which Matplotlib reads whenever an artist is made."""

    @functools.wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> T:
        import matplotlib

        with matplotlib.rc_context(_STYLE):
            return draw(*args, **kwargs)

    return styled


@dataclass(frozen=True)
class Key:
    """How one distortion is drawn: its family's colour, a marker of its own within the family."""

    name: str
    family: str
    colour: str
    marker: str

    @property
    def sign(self) -> str:
        """The marker as a character."""
        return _MARKERS[self.marker]

    @property
    def css(self) -> str:
        """The colour as the page writes it."""
        return f"var({_THEME[self.colour]})" if self.colour in _THEME else self.colour


def keys(distortions: Sequence[str]) -> list[Key]:
    """The legend of these distortions, family by family; names outside the bank follow, in one colour.

    Args:
        distortions: of each picture; "" for none.
    """
    markers = list(_MARKERS)
    present = set(distortions)
    legend = [
        Key(name, family, _COLOURS[family], markers[place])
        for family, names in FAMILIES.items()
        for place, name in enumerate(names)
        if name in present
    ]
    others = sorted(present - {name for names in FAMILIES.values() for name in names} - {""})
    legend += [Key(name, "other", MUTED, markers[i % len(markers)]) for i, name in enumerate(others)]
    return legend + ([Key(_NONE, "no distortion", INK, markers[0])] if "" in present else [])


def embed(features: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """t-SNE (van der Maaten and Hinton, JMLR 2008) in the plane, the same for the same seed on any number of cores.

    Args:
        features: shape (N, D), N at least 5.
        seed: of the embedding.
    Returns:
        shape (N, 2).
    """
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):  # a sum over several threads depends on their number
        tsne = TSNE(perplexity=min(30.0, (len(features) - 1) / 3), init="pca", random_state=seed)
        return np.asarray(tsne.fit_transform(features), dtype=np.float32)


@_styled
def feature_map(places: NDArray[np.float32], distortions: Sequence[str]) -> "Figure":
    """Embedded features by distortion, as the paper's t-SNE figure.

    Args:
        places: shape (N, 2).
        distortions: of each row, "" for none. Length N.
    """
    figure, axes = _figure(4.4)
    names = np.asarray(distortions, dtype=str)
    for key in keys(distortions):
        mine = places[names == ("" if key.name == _NONE else key.name)]
        axes.scatter(*mine.T, s=20, marker=key.marker, color=key.colour, alpha=0.8, linewidths=0)
    axes.set(xticks=[], yticks=[], xlabel="t-SNE, first axis", ylabel="second axis")
    return figure


@_styled
def training_curve(history: Sequence[Mapping[str, float]]) -> "Figure":
    """Loss and learning rate against the step."""
    figure, axes = _figure(3.2)
    steps = [entry["step"] for entry in history]
    axes.plot(steps, [entry["loss"] for entry in history], color=ACCENT, marker="o", markersize=2.5)
    axes.set(xlabel="step", ylabel="contrastive loss")
    rate = axes.twinx()
    rate.plot(steps, [entry["lr"] for entry in history], color=MUTED, linestyle="--", linewidth=1)
    rate.grid(False)
    rate.set_ylabel("learning rate (dashed)")
    rate.ticklabel_format(scilimits=(-2, 3))
    return figure


PROBES = {"probe_type": ("type of distortion", ACCENT, "o"), "probe_level": ("level", SECOND, "s")}


@_styled
def probe_curve(history: Sequence[Mapping[str, float]]) -> "Figure | None":
    """Accuracy of the linear probes against the step; None if the history has none."""
    lines = {name: [entry for entry in history if name in entry] for name in PROBES}
    if not any(lines.values()):
        return None
    figure, axes = _figure(3.2)
    for name, entries in lines.items():
        label, colour, marker = PROBES[name]
        steps = [entry["step"] for entry in entries]
        axes.plot(steps, [entry[name] for entry in entries], color=colour, marker=marker, markersize=3.5, label=label)
    axes.set(xlabel="step", ylabel="accuracy of the linear probe", ylim=(0, None))
    axes.legend(frameon=False)
    return figure


@_styled
def score_scatter(scores: "pd.DataFrame", label: str) -> "Figure":
    """Challenger's scores of the test part against their labels, with the 4-parameter logistic.

    Args:
        scores: columns challenger and label.
        label: what the labels are called.
    """
    from contrique import metrics

    figure, axes = _figure(4.0)
    x, y = scores["challenger"].to_numpy(), scores["label"].to_numpy()
    axes.scatter(x, y, s=16, alpha=0.6, color=ACCENT, linewidths=0)
    try:
        line = np.linspace(x.min(), x.max(), 200)
        axes.plot(line, metrics.logistic(line, metrics.fit_logistic(x, y)), color=SECOND, linewidth=1.8)
        caption = "predicted score (line: logistic)"
    except metrics.EvaluationError as error:
        caption = f"predicted score (no logistic: {error})"
    axes.set(xlabel=caption, ylabel=label)
    return figure


@_styled
def slice_bars(slices: Mapping[str, Mapping[str, Any]]) -> "Figure":
    """SRCC of each distortion with its interval; where it is undefined, the name stands without a bar.

    Bars whose interval reaches zero are grey: nothing is shown there.
    """
    figure, axes = _figure(max(1.6, 0.22 * len(slices) + 0.7))
    order = sorted(slices, key=lambda name: slices[name]["srcc"]["value"] if slices[name]["srcc"] else -2.0)
    for place, name in enumerate(order):
        if estimate := slices[name]["srcc"]:
            colour = ACCENT if estimate["low"] > 0 else MUTED
            axes.barh(place, estimate["value"], color=colour, height=0.62, alpha=0.75)
            axes.plot([estimate["low"], estimate["high"]], [place, place], color=INK, linewidth=1.2)
    axes.set_yticks(range(len(order)), [f"{shorten(readable(name), MAX_TICK)} ({slices[name]['n']})" for name in order])
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.set(xlabel="SRCC, with interval", xlim=(-1, 1), ylim=(-0.6, len(order) - 0.4), xticks=np.linspace(-1, 1, 5))
    axes.axvline(0, color=MUTED, linewidth=0.8)
    return figure


def readable(name: str) -> str:
    """A distortion's name for people, of at most MAX_NAME characters."""
    return shorten(escape_control(name.replace("_", " ")), MAX_NAME)


def svg(figure: "Figure", name: str, description: str) -> str:
    """A figure as inline SVG: no fixed colours of text and axes, no ids that two figures of a page could share.

    Args:
        figure: from this module.
        name: of the figure, unique on its page.
        description: what a screen reader says instead.
    """
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": name}):
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    text = buffer.getvalue()
    text = re.sub(r'<g id="[^"]*"', "<g", text[text.index("<svg") :])
    for colour, variable in _THEME.items():
        text = text.replace(colour, f"var({variable})")
    return text.replace("<svg", f'<svg role="img" aria-label="{html.escape(description)}"', 1)


def _figure(height: float) -> tuple["Figure", Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.add_subplot()
