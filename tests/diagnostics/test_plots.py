from __future__ import annotations

import sys

import matplotlib.colors
import numpy as np
import pytest
import torch

from pyrogen.diagnostics import (
    plot_history,
    plot_images,
    plot_latent_space,
    plot_reconstructions,
)
from pyrogen.diagnostics.plots import _COLOURS


def canvas(figure):
    return np.asarray(figure.axes[0].images[0].get_array())


def test_images_stand_in_rows_with_white_gaps():
    images = torch.rand(5, 8, 8)
    grid = canvas(plot_images(images, columns=3))
    assert grid.shape == (17, 26, 3)
    assert np.allclose(grid[:8, 9:17, 0], images[1])
    assert np.allclose(grid[9:, :8, 2], images[3])
    assert (grid[8] == 1).all()
    assert (grid[9:, 18:] == 1).all()  # the place of a sixth image


@pytest.mark.parametrize("shape", [(4, 8, 8), (4, 1, 8, 8), (4, 64)])
def test_shapes_of_images_are_equivalent(shape):
    images = torch.linspace(0, 1, 256)
    expected = canvas(plot_images(images.reshape(4, 8, 8)))
    assert np.array_equal(canvas(plot_images(images.reshape(shape))), expected)


def test_colour_images():
    images = torch.rand(1, 3, 4, 4)
    assert np.allclose(canvas(plot_images(images)), images[0].permute(1, 2, 0))


def test_values_beyond_the_unit_range_are_rescaled():
    images = torch.tensor([[-1.0, 3.0], [0.0, 1.0]]).reshape(1, 2, 2)
    assert canvas(plot_images(images))[..., 0].tolist() == [[0, 1], [0.25, 0.5]]


def test_reconstructions_stand_below_their_originals():
    original, reconstruction = torch.zeros(3, 8, 8), torch.full((3, 8, 8), 0.5)
    grid = canvas(plot_reconstructions(original, reconstruction, columns=2))
    assert grid.shape == (8 * 4 + 2 * 1 + 3, 17, 3)
    assert (grid[:8, :8] == 0).all()
    assert (grid[9:17, :8] == 0.5).all()
    assert (grid[20:28, :8] == 0).all()
    assert (grid[29:, 9:] == 1).all()


def test_two_dimensions_are_drawn_as_they_are():
    points = torch.randn(10, 2)
    axes = plot_latent_space(points).axes[0]
    assert np.allclose(axes.collections[0].get_offsets(), points)
    assert axes.get_xlabel() == "$z_1$"


def test_more_dimensions_are_projected_on_the_principal_axes():
    plane = torch.linalg.qr(torch.randn(5, 2, dtype=torch.float64)).Q
    flat = torch.randn(50, 2, dtype=torch.float64) * torch.tensor([3.0, 1.0])
    axes = plot_latent_space(flat @ plane.T + 7).axes[0]
    shown = torch.as_tensor(np.asarray(axes.collections[0].get_offsets()))
    assert torch.allclose(torch.cdist(shown, shown), torch.cdist(flat, flat), atol=1e-6)
    variances = torch.linalg.eigvalsh(torch.cov(flat.T)).flip(0)
    assert torch.allclose(shown.var(0), variances)
    assert f"{variances[0] / variances.sum():.0%} of variance" in axes.get_xlabel()


def test_classes_have_a_colour_each_and_a_legend():
    labels = torch.tensor([3, 1, 1, 3, 0])
    axes = plot_latent_space(torch.randn(5, 2), labels).axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["0", "1", "3"]
    assert [len(drawn.get_offsets()) for drawn in axes.collections] == [1, 2, 2]
    assert len({tuple(drawn.get_facecolor()[0]) for drawn in axes.collections}) == 3


def test_continuous_labels_have_a_colour_bar():
    figure = plot_latent_space(torch.randn(5, 2), torch.rand(5))
    assert len(figure.axes) == 2


def test_class_colours_differ_for_deuteranopes():
    # Vienot, Brettel and Mollon (1999): linear RGB as a deuteranope sees it.
    seen = np.array([[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]])
    linear = np.array([matplotlib.colors.to_rgb(c) for c in _COLOURS]) ** 2.2
    perceived = np.clip(linear @ seen.T, 0, 1) ** (1 / 2.2)
    distance = np.linalg.norm(perceived[:, None] - perceived[None], axis=-1)
    assert distance[~np.eye(len(_COLOURS), dtype=bool)].min() > 0.1  # of sqrt(3)


def test_history_draws_a_curve_for_each_name_and_leaves_out_nan():
    history = {"epoch": [0, 1, 2], "train_loss": [3.0, 2.0, 1.0], "valid": [3.1, float("nan"), 2.0]}
    axes = plot_history(history).axes[0]
    train, valid = axes.lines
    assert train.get_xydata().tolist() == [[0, 3], [1, 2], [2, 1]]
    assert np.allclose(valid.get_xydata(), [[0, 3.1], [2, 2.0]])
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["train loss", "valid"]
    assert train.get_color() != valid.get_color()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plot_images(torch.zeros(3, 7)), r"images: expected shape .* got \[3, 7\]"),
        (lambda: plot_images(torch.zeros(0, 4, 4)), "at least one image"),
        (lambda: plot_images(torch.zeros(1, 2, 4, 4)), r"got \[1, 2, 4, 4\]"),
        (lambda: plot_reconstructions(torch.zeros(2, 4, 4), torch.zeros(3, 4, 4)), "originals"),
        (lambda: plot_latent_space(torch.zeros(5, 1)), "N and D of at least 2"),
        (lambda: plot_latent_space(torch.zeros(5, 2), torch.zeros(4)), r"labels: expected .*\[5\]"),
        (lambda: plot_history({"epoch": [1]}), "one-dimensional curves"),
    ],
)
def test_bad_input_says_expected_and_got(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'pyrogen\[examples\]'"):
        plot_history({"loss": [1.0]})
