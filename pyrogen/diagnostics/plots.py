"""Pictures of a generative model, with matplotlib.

Every function returns the figure and shows or saves nothing: ``plot_images(x).savefig("x.png")``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pyrogen.diagnostics._record import to_numpy
from pyrogen.diagnostics.calibration import Calibration

__all__ = [
    "plot_history",
    "plot_images",
    "plot_latent_space",
    "plot_reconstructions",
    "plot_reliability",
]

# Paul Tol's "muted" scheme, which stays distinct for all kinds of colour vision; black for its
# grey, which deuteranopes see as the third.
_COLOURS = (
    "#332288", "#88ccee", "#44aa99", "#117733", "#999933",
    "#ddcc77", "#cc6677", "#882255", "#aa4499", "#000000",
)  # fmt: skip
_INK = "#333333"


def plot_images(images: Any, *, columns: int | None = None, title: str | None = None) -> Any:
    """Draws a grid of images.

    Args:
        images: ``[N, H, W]``, ``[N, C, H, W]`` with 1 or 3 channels, or ``[N, H * W]`` of squares.
        columns: images per row; by default the grid is about square.
        title: text above the grid.

    Returns:
        The ``matplotlib.figure.Figure``.

    Raises:
        ValueError: if ``images`` has another shape or is empty.
        ImportError: if matplotlib is not installed.

    Example:
        >>> figure = plot_images(torch.rand(6, 8, 8), columns=3)
        >>> len(figure.axes)
        1
    """
    pictures = _pictures(images)
    columns = columns or math.ceil(math.sqrt(len(pictures)))
    return _show_grid(pictures, columns, title)


def plot_reconstructions(
    original: Any, reconstruction: Any, *, columns: int = 10, title: str | None = None
) -> Any:
    """Draws images in rows, each with a row of their reconstructions below.

    Args:
        original: images, of a shape that :func:`plot_images` takes.
        reconstruction: as many images.
        columns: images per row.
        title: text above the grid.

    Returns:
        The ``matplotlib.figure.Figure``.

    Raises:
        ValueError: if the shapes differ.
        ImportError: if matplotlib is not installed.

    Example:
        >>> x = torch.rand(5, 64)
        >>> figure = plot_reconstructions(x, x, columns=5)
    """
    above, below = _pictures(original), _pictures(reconstruction)
    if above.shape != below.shape:
        raise ValueError(
            f"reconstruction: expected shape {list(above.shape)} like the originals, got "
            f"{list(below.shape)}"
        )
    columns = min(columns, len(above))
    rows = []
    for start in range(0, len(above), columns):
        rows += [_padded(above[start : start + columns], columns)]
        rows += [_padded(below[start : start + columns], columns)]
    return _show_grid(np.concatenate(rows), columns, title, paired=True)


def plot_latent_space(locations: Any, labels: Any = None, *, title: str | None = None) -> Any:
    """Draws points of the latent space, projected on two principal axes if it has more.

    Args:
        locations: ``[N, D]``, for instance posterior means, with ``D >= 2``.
        labels: ``[N]``; integers are classes, floating-point numbers a colour scale.
        title: text above the plot.

    Returns:
        The ``matplotlib.figure.Figure``.

    Raises:
        ValueError: if the shapes do not fit.
        ImportError: if matplotlib is not installed.

    Example:
        >>> figure = plot_latent_space(torch.randn(20, 5), torch.arange(20) % 3)
    """
    points, names = _project(torch.as_tensor(locations).detach())
    figure, axes = _figure(5.6, 5.0)
    if labels is None:
        axes.scatter(*points.T, s=12, c=_COLOURS[0], alpha=0.7, linewidths=0)
    else:
        _coloured(figure, axes, points, _checked_labels(labels, len(points)))
    axes.set_xlabel(names[0])
    axes.set_ylabel(names[1])
    axes.set_aspect("equal", adjustable="datalim")
    return _finished(figure, axes, title)


def plot_history(
    history: Mapping[str, Sequence[float]],
    *,
    ylabel: str = "nats per datum",
    title: str | None = None,
) -> Any:
    """Draws training curves.

    Args:
        history: name -> one number per epoch; a key ``"epoch"`` or ``"step"`` gives the abscissa.
            NaN leaves a gap.
        ylabel: label of the ordinate.
        title: text above the plot.

    Returns:
        The ``matplotlib.figure.Figure``.

    Raises:
        ValueError: if there is nothing to draw.
        ImportError: if matplotlib is not installed.

    Example:
        >>> figure = plot_history({"train": [3.0, 2.0], "validation": [3.1, 2.2]})
    """
    axis = next((name for name in ("epoch", "step") if name in history), None)
    curves = {name: to_numpy(v) for name, v in history.items() if name != axis}
    if not curves or not all(curve.ndim == 1 and curve.size for curve in curves.values()):
        shapes = {name: list(curve.shape) for name, curve in curves.items()}
        raise ValueError(f"history: expected one-dimensional curves by name, got {shapes}")
    figure, axes = _figure(6.4, 4.0)
    for (name, curve), colour in zip(curves.items(), _COLOURS[0::3] * len(curves), strict=False):
        x = np.arange(1, curve.size + 1) if axis is None else to_numpy(history[axis])
        kept = np.isfinite(curve)
        axes.plot(x[kept], curve[kept], color=colour, linewidth=1.8, label=name.replace("_", " "))
    axes.set_xlabel(axis or "epoch")
    axes.set_ylabel(ylabel)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.legend(frameon=False)
    return _finished(figure, axes, title)


def plot_reliability(results: Mapping[str, Calibration], *, title: str | None = None) -> Any:
    """Draws how often classifiers are right where they say how sure they are.

    On the diagonal they are right as often as they say, below it less often. The area of a point
    grows with the number of cases; vertical lines are one standard error either way.

    Args:
        results: name -> what :func:`~pyrogen.diagnostics.calibration` returned.
        title: text above the plot.

    Returns:
        The ``matplotlib.figure.Figure``.

    Raises:
        ValueError: if there is nothing to draw.
        ImportError: if matplotlib is not installed.

    Example:
        >>> from pyrogen.diagnostics import calibration
        >>> result = calibration(torch.rand(50, 3).softmax(-1), torch.arange(50) % 3)
        >>> figure = plot_reliability({"a guess": result})
    """
    if not results:
        raise ValueError("results: expected at least one calibration by name, got none")
    figure, axes = _figure(5.0, 4.6)
    axes.plot([0, 1], [0, 1], color="#999999", linewidth=1.0, linestyle="--")
    for (name, result), colour in zip(results.items(), _COLOURS[0::3] * len(results), strict=False):
        filled = to_numpy(result.count) > 0
        x, y = to_numpy(result.confidence)[filled], to_numpy(result.frequency)[filled]
        cases = to_numpy(result.count)[filled]
        smoothed = (y * cases + 1) / (cases + 2)
        error = np.sqrt(smoothed * (1 - smoothed) / (cases + 2))
        axes.vlines(x, y - error, y + error, color=colour, linewidth=0.8, alpha=0.5)
        share = cases / cases.sum()
        label = f"{name} (error {result.expected_error:.3f})"
        axes.plot(x, y, color=colour, linewidth=1.4, label=label)
        axes.scatter(x, y, s=12 + 300 * share, color=colour, alpha=0.6, linewidths=0)
    axes.set_xlabel("probability of the first choice")
    axes.set_ylabel("share that is right")
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.02)
    axes.legend(frameon=False, loc="upper left")
    return _finished(figure, axes, title)


def _figure(width: float, height: float) -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "plots need matplotlib: pip install 'pyrogen[examples]'", name="matplotlib"
        ) from error
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    return figure, figure.add_subplot()


def _finished(figure: Any, axes: Any, title: str | None) -> Any:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#999999")
    axes.tick_params(colors=_INK, labelsize=9)
    if title:
        axes.set_title(title, color=_INK, fontsize=11, loc="left")
    return figure


def _pictures(images: Any) -> NDArray[Any]:
    """``[N, H, W]`` or ``[N, H, W, 3]``."""
    array = to_numpy(images)
    side = math.isqrt(array.shape[-1]) if array.ndim == 2 else 0
    if array.ndim == 2 and side * side == array.shape[1]:
        array = array.reshape(-1, side, side)
    if array.ndim == 4 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim == 4 and array.shape[1] == 3:
        array = np.moveaxis(array, 1, -1)
    elif array.ndim != 3:
        raise ValueError(
            "images: expected shape [N, H, W], [N, 1 or 3, H, W] or [N, side * side], got "
            f"{list(np.shape(images))}"
        )
    if array.size == 0:
        raise ValueError(f"images: expected at least one image, got shape {list(array.shape)}")
    return array.astype(np.float64)


def _padded(pictures: NDArray[Any], count: int) -> NDArray[Any]:
    missing = count - len(pictures)
    return np.pad(pictures, [(0, missing)] + [(0, 0)] * (pictures.ndim - 1), constant_values=np.nan)


def _show_grid(
    pictures: NDArray[Any], columns: int, title: str | None, paired: bool = False
) -> Any:
    rows = math.ceil(len(pictures) / columns)
    low, high = min(0.0, np.nanmin(pictures)), max(1.0, np.nanmax(pictures))
    canvas = _canvas((_padded(pictures, rows * columns) - low) / (high - low), columns, paired)
    scale = min(0.7, 9.0 / columns)
    height = scale * columns * canvas.shape[0] / canvas.shape[1]
    figure, axes = _figure(scale * columns, height + (0.3 if title else 0.0))
    axes.imshow(canvas, interpolation="nearest")
    axes.set_axis_off()
    if title:
        axes.set_title(title, color=_INK, fontsize=10)
    return figure


def _canvas(pictures: NDArray[Any], columns: int, paired: bool) -> NDArray[Any]:
    """Tiles unit-range pictures on white, with thin gaps; pairs of rows stand closer together."""
    if pictures.ndim == 3:
        pictures = np.repeat(pictures[..., None], 3, axis=-1)
    height, width = pictures.shape[1:3]
    grid = pictures.reshape(-1, columns, height, width, 3)
    gap = max(1, width // 8)
    tops = [r * (height + gap) + (gap * (r // 2) * 2 if paired else 0) for r in range(len(grid))]
    canvas = np.ones((tops[-1] + height, columns * (width + gap) - gap, 3))
    for top, row in zip(tops, grid, strict=True):
        for column, picture in enumerate(row):
            left = column * (width + gap)
            canvas[top : top + height, left : left + width] = np.nan_to_num(picture, nan=1.0)
    return canvas


def _project(locations: torch.Tensor) -> tuple[NDArray[Any], tuple[str, str]]:
    if locations.dim() != 2 or locations.shape[1] < 2 or len(locations) < 2:
        raise ValueError(
            "locations: expected shape [N, D] with N and D of at least 2, got "
            f"{list(locations.shape)}"
        )
    if locations.shape[1] == 2:
        return to_numpy(locations), ("$z_1$", "$z_2$")
    centred = (locations - locations.mean(0)).double()
    _, scales, axes = torch.linalg.svd(centred, full_matrices=False)
    shares = scales.square() / scales.square().sum().clamp(min=torch.finfo(torch.double).tiny)
    first, second = (f"principal axis {i + 1} ({shares[i]:.0%} of variance)" for i in range(2))
    return to_numpy(centred @ axes[:2].T), (first, second)


def _checked_labels(labels: Any, count: int) -> NDArray[Any]:
    array = to_numpy(labels)
    if array.shape != (count,):
        raise ValueError(f"labels: expected shape [{count}], got {list(array.shape)}")
    return array


def _coloured(figure: Any, axes: Any, points: NDArray[Any], labels: NDArray[Any]) -> None:
    style = {"s": 12, "alpha": 0.75, "linewidths": 0}
    classes = np.unique(labels)
    if np.issubdtype(labels.dtype, np.floating) or len(classes) > len(_COLOURS):
        shown = axes.scatter(*points.T, c=labels, cmap="viridis", **style)
        figure.colorbar(shown, ax=axes, shrink=0.8).outline.set_visible(False)
        return
    for label, colour in zip(classes, _COLOURS, strict=False):
        axes.scatter(*points[labels == label].T, color=colour, label=str(label), **style)
    axes.legend(
        frameon=False, markerscale=2, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9
    )
