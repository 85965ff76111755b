"""Densities on the globe: a flow through the plane has a pole, a flow along the surface has none.

The places after which the world's time zones are named (the public-domain table ``zone.tab`` that
comes with Python's time zone data) are smoothed by von Mises-Fisher kernels. That is a density of
real points of which every value is known. Two flows learn it from draws, by SVI:

* a spline flow of the plane, wrapped around the globe by stereographic projection. Its pole is the
  plane's infinity. It is trained twice, with the pole where the density is largest, and smallest.
* a differential equation on the surface, which has no exceptional point.

Written to ``--output-dir``:

* ``globe.png``: the densities of the globe, and of the surroundings of the worst pole
* ``report.md``: KL(p to q) in nats, the mass of q by quadrature, and how q varies around the pole

    python examples/sphere_density.py [--steps 1500]
"""

from __future__ import annotations

import argparse
import importlib.resources
import math
import re
import time
import zoneinfo
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import torch
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import ClippedAdam
from torch import Tensor

from pyrogen.guides import Empty
from pyrogen.losses import Compiled
from pyrogen.models import SphericalFlow
from pyrogen.nn import TimeMLP
from pyrogen.transforms import (
    ContinuousSphereFlow,
    InvertibleConvolution,
    SphereFlow,
    SplineCoupling,
)

BATCH, LEARNING_RATE, CONCENTRATION = 256, 4e-3, 50.0
CLOSE = math.radians(12)  # radius of the surroundings that are drawn
RING = math.radians(0.2)  # radius of the circle around a pole on which a density is compared
INK = LinearSegmentedColormap.from_list("ink", ["white", "#88ccee", "#332288", "#120a3a"])
NOTES = """\
The last two columns are the largest over the smallest value of q on a circle of 0.2 degrees around
the point. There the truth hardly varies, while a flow through the plane may tend to another value
from each direction. KL hardly feels that, since so small a circle holds little mass."""


def zone_table() -> str:
    """The table of time zones, of the system or of the package ``tzdata``."""
    for folder in zoneinfo.TZPATH:
        if (path := Path(folder) / "zone.tab").exists():
            return path.read_text(encoding="utf-8")
    try:
        table = importlib.resources.files("tzdata") / "zoneinfo" / "zone.tab"
    except ModuleNotFoundError as error:
        raise FileNotFoundError("no time zone data found; pip install tzdata") from error
    return table.read_text(encoding="utf-8")


def load() -> Tensor:
    """The places as unit vectors ``[n, 3]``."""
    angles = []
    for row in zone_table().splitlines():
        if match := re.match(r"[A-Z]{2}\t([+-]\d+)([+-]\d+)\t", row):
            angles.append(
                [degrees(text, size) for text, size in zip(match.groups(), (2, 3), strict=True)]
            )
    latitude, longitude = torch.tensor(angles).deg2rad().unbind(-1)
    return globe(latitude, longitude)


def degrees(text: str, size: int) -> float:
    """An angle such as -0330 or +0393524: sign, degrees of that many digits, minutes, seconds."""
    sign, digits = -1 if text[0] == "-" else 1, text[1:]
    whole, minutes, seconds = digits[:size], digits[size : size + 2], digits[size + 2 :] or "0"
    return sign * (int(whole) + int(minutes) / 60 + int(seconds) / 3600)


def globe(latitude: Tensor, longitude: Tensor) -> Tensor:
    """Unit vectors ``[*, 3]``."""
    flat = latitude.cos()
    return torch.stack([flat * longitude.cos(), flat * longitude.sin(), latitude.sin()], dim=-1)


@dataclass
class Smoothed:
    r"""An equal mixture of von Mises-Fisher distributions around points.

    .. math:: p(x) = \frac1n \sum_i
       \frac{\kappa}{2 \pi (1 - e^{-2 \kappa})} e^{\kappa (\mu_i^\top x - 1)}
    """

    points: Tensor
    concentration: float

    def log_prob(self, x: Tensor) -> Tensor:
        """The log-density of unit vectors ``[*, 3]``."""
        k = self.concentration
        constant = math.log(k / (2 * math.pi * -math.expm1(-2 * k) * len(self.points)))
        return (k * (x @ self.points.T - 1)).logsumexp(-1) + constant

    def sample(self, size: int) -> Tensor:
        """Draws ``[size, 3]``: a point, the height above it, and a direction around it."""
        k, mean = self.concentration, self.points[torch.randint(len(self.points), (size,))]
        u = torch.rand(size, 1)
        height = 1 + torch.log(u + (1 - u) * math.exp(-2 * k)) / k
        around = torch.cross(mean, torch.randn(size, 3), dim=-1)
        around = around / around.norm(dim=-1, keepdim=True)
        x = height * mean + (1 - height.square()).clamp_min(0).sqrt() * around
        return x / x.norm(dim=-1, keepdim=True)


def mirror(pole: Tensor) -> Tensor:
    """The reflection ``[3, 3]`` that puts a point where the stereographic projection has its pole.

    It is its own inverse, and changes no area.
    """
    normal = pole - pole.new_tensor([0.0, 0.0, 1.0])
    normal = normal / normal.norm()
    return torch.eye(3) - 2 * torch.outer(normal, normal)


def through_the_plane(layers: int = 8) -> SphericalFlow:
    """A spline flow of the plane, wrapped around the sphere."""
    chain: list[Any] = []
    for i in range(layers):
        spline = SplineCoupling(2, None, 12, 8.0, swap=bool(i % 2), hidden=(64, 64))
        chain += [InvertibleConvolution(2), spline]
    return SphericalFlow(2, [SphereFlow(chain)])


def along_the_surface() -> SphericalFlow:
    """The flow of a field on the sphere."""
    field = TimeMLP(3, hidden=(128, 128))
    return SphericalFlow(2, [ContinuousSphereFlow(field, method="rk4", steps=6)])


@dataclass
class Learned:
    """A flow, in coordinates that a reflection has changed."""

    model: SphericalFlow
    frame: Tensor

    def log_prob(self, x: Tensor) -> Tensor:
        """The log-density of unit vectors ``[*, 3]``."""
        with torch.no_grad():
            x = x @ self.frame
            return self.model.distribution().log_prob(x / x.norm(dim=-1, keepdim=True))

    def train(self, truth: Smoothed, steps: int, compile: bool) -> None:
        """Trains by SVI on draws, each seen once."""
        pyro.clear_param_store()  # of the flow before, whose parameters have the same names
        elbo = Trace_ELBO(max_plate_nesting=1)
        optimizer = ClippedAdam({"lr": LEARNING_RATE, "lrd": 0.03 ** (1 / steps)})
        svi = SVI(self.model, Empty(), optimizer, loss=Compiled(elbo) if compile else elbo)
        for _ in range(steps):
            x = truth.sample(BATCH) @ self.frame
            svi.step(x / x.norm(dim=-1, keepdim=True))


def lattice(size: int) -> Tensor:
    """Points spread evenly over the sphere, along a spiral ``[size, 3]``."""
    i = torch.arange(size, dtype=torch.float64) + 0.5
    latitude, longitude = torch.asin(1 - 2 * i / size), i * math.pi * (3 - math.sqrt(5))
    return globe(latitude, longitude).float()


def around(point: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Unit vectors at offsets to the east and to the north of a point, in radians along the arc."""
    east = torch.linalg.cross(point.new_tensor([0.0, 0.0, 1.0]), point)
    east = east / east.norm()
    north = torch.linalg.cross(point, east)
    arc = torch.hypot(x, y).clamp_min(1e-9).unsqueeze(-1)
    direction = (x.unsqueeze(-1) * east + y.unsqueeze(-1) * north) / arc
    return arc.cos() * point + arc.sin() * direction


def swing(density: Any, point: Tensor) -> float:
    """The largest over the smallest density on a circle around a point."""
    angle = torch.linspace(0, 2 * math.pi, 721)[:-1]
    values = density.log_prob(around(point, RING * angle.cos(), RING * angle.sin()))
    return (values.max() - values.min()).exp().item()


def picture(densities: dict[str, Any], worst: Tensor, points: Tensor, pixels: int) -> Figure:
    """A row for each density: the globe, and what surrounds one point."""
    figure = Figure(figsize=(9.4, 2.62 * len(densities) + 0.3), layout="constrained")
    axes = figure.subplots(len(densities), 2, squeeze=False, width_ratios=(2.4, 1))
    world, close = mollweide(pixels), disc(worst, pixels // 2)
    truth = next(iter(densities.values()))
    top = truth.log_prob(lattice(20_000)).exp().max().item()
    for (left, right), (name, density) in zip(axes, densities.items(), strict=True):
        for axis, (x, extent) in ((left, world), (right, close)):
            values = density.log_prob(torch.nan_to_num(x, nan=0.577)).exp()
            values[x.isnan().any(-1)] = math.nan
            image = axis.imshow(
                values, extent=extent, origin="lower", cmap=INK, norm=PowerNorm(0.5, 0, top)
            )
            axis.set_axis_off()
        left.set_title(name, size=10, loc="left", color="#333333")
        right.plot(0, 0, "+", c="#cc3311", ms=7, mew=0.8)
        outline(left, right)
    axes[0, 0].scatter(*project(points), s=2, c="#cc3311", linewidths=0)
    axes[0, 0].scatter(*project(worst[None]), s=40, marker="o", fc="none", ec="#cc3311", lw=1)
    axes[0, 1].set_title("12 degrees around the circled point", size=9, color="#333333")
    bar = figure.colorbar(image, ax=axes, shrink=0.4, aspect=30, label="density per steradian")
    bar.outline.set_visible(False)
    return figure


def outline(left: Any, right: Any) -> None:
    """Draws the edges of the globe and of the close view."""
    angle = torch.linspace(0, 2 * math.pi, 361)
    left.plot(2 * angle.cos(), angle.sin(), c="#999999", lw=0.6)
    right.plot(CLOSE * angle.cos(), CLOSE * angle.sin(), c="#999999", lw=0.6)


def mollweide(pixels: int) -> tuple[Tensor, tuple[float, float, float, float]]:
    """Points of a map of true areas ``[pixels / 2, pixels, 3]``, NaN outside, and its extent."""
    x = torch.linspace(-2, 2, 2 * pixels + 1)[1::2]
    y = torch.linspace(-1, 1, pixels + 1)[1::2]
    x, y = torch.meshgrid(x, y, indexing="xy")
    theta = torch.asin(y)
    latitude = torch.asin((2 * theta + torch.sin(2 * theta)) / math.pi)
    longitude = math.pi / 2 * x / theta.cos()
    inside = (longitude.abs() <= math.pi).unsqueeze(-1)
    return torch.where(inside, globe(latitude, longitude), math.nan), (-2, 2, -1, 1)


def project(points: Tensor) -> tuple[Tensor, Tensor]:
    """Where unit vectors lie on that map."""
    latitude, longitude = torch.asin(points[:, 2]), torch.atan2(points[:, 1], points[:, 0])
    theta = latitude.clone()
    for _ in range(50):  # Newton's method
        excess = 2 * theta + torch.sin(2 * theta) - math.pi * torch.sin(latitude)
        theta = theta - excess / (2 + 2 * torch.cos(2 * theta)).clamp_min(1e-6)
    return 2 / math.pi * longitude * theta.cos(), theta.sin()


def disc(point: Tensor, pixels: int) -> tuple[Tensor, tuple[float, float, float, float]]:
    """Points around a point, at true distances ``[pixels, pixels, 3]``, and the extent."""
    side = torch.linspace(-CLOSE, CLOSE, 2 * pixels + 1)[1::2]
    x, y = torch.meshgrid(side, side, indexing="xy")
    inside = (torch.hypot(x, y) <= CLOSE).unsqueeze(-1)
    return torch.where(inside, around(point, x, y), math.nan), (-CLOSE, CLOSE, -CLOSE, CLOSE)


def report(rows: dict[str, dict[str, float]], places: int) -> str:
    """The figures as a page of Markdown."""
    lines = [
        f"| {name} | {row['divergence']:.4f} | {row['mass']:.4f} | {row['dense']:.3g} | "
        f"{row['empty']:.3g} |"
        for name, row in rows.items()
    ]
    return "\n".join(
        [
            f"# Densities on the globe, of {places} smoothed places",
            "",
            "| density | KL(p to q), nats | mass | swing where p is largest | where smallest |",
            "|---|---|---|---|---|",
            *lines,
            "",
            NOTES,
            "",
        ]
    )


def main() -> None:
    """Trains the flows, measures and draws."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/sphere_density"))
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="two steps, to see that it runs")
    options = parser.parse_args()
    steps, size, pixels = (2, 500, 40) if options.smoke else (options.steps, 50_000, 800)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    pyro.set_rng_seed(options.seed)

    truth, even = Smoothed(load(), CONCENTRATION), lattice(size)
    p = truth.log_prob(even)
    dense, empty = even[p.argmax()], even[p.argmin()]
    densities: dict[str, Any] = {
        "truth": truth,
        "through the plane, pole where p is largest": Learned(through_the_plane(), mirror(dense)),
        "through the plane, pole where p is smallest": Learned(through_the_plane(), mirror(empty)),
        "along the surface, no pole": Learned(along_the_surface(), torch.eye(3)),
    }
    x, rows = truth.sample(size), {}
    for name, q in densities.items():
        begin = time.perf_counter()
        if isinstance(q, Learned):
            q.train(truth, steps, compile=not options.smoke)
        rows[name] = {
            "divergence": (truth.log_prob(x) - q.log_prob(x)).mean().item(),
            "mass": 4 * math.pi * q.log_prob(even).exp().mean().item(),
            "dense": swing(q, dense),
            "empty": swing(q, empty),
        }
        print(f"{name}: {rows[name]}, {time.perf_counter() - begin:.0f} s", flush=True)
    picture(densities, dense, truth.points, pixels).savefig(
        options.output_dir / "globe.png", dpi=150
    )
    page = report(rows, len(truth.points))
    (options.output_dir / "report.md").write_text(page, encoding="utf-8")
    print(f"\n{page}\nwritten to {options.output_dir}/")


if __name__ == "__main__":
    main()
