r"""Sampling by a diffusion that runs backwards in time.

.. math:: dx = \left[f x - g^2\, s(x, t)\right] dt + g\, d\bar W, \qquad
   x_{t_1} \sim p_{t_1}, \quad t_1 \to t_0,

in steps of one of the solvers of :mod:`pyrogen.processes`. A predictor-corrector follows each step
(the predictor) with Langevin steps at the level reached (the corrector), which pull the law back to
that level's.

References:
    Y. Song et al., *Score-based generative modeling through stochastic differential equations*,
    2021, arXiv:2011.13456.

With a guidance the model may observe something of the site. What is sampled is then an estimate of
the posterior: the score of the likelihood of a noisy state is added to that of the prior.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from pyrogen.distributions import ScoreBased
from pyrogen.kernels._guidance import Guidance, GuidedDenoising, target_of_posterior
from pyrogen.kernels._options import one_of
from pyrogen.kernels._reverse import ReverseState, Walk
from pyrogen.kernels._score_site import Denoising
from pyrogen.kernels._solved import Solved
from pyrogen.kernels._target import Target
from pyrogen.kernels.dps import DPS
from pyrogen.kernels.mmps import MMPS
from pyrogen.kernels.pigdm import PiGDM
from pyrogen.kernels.twisted_smc import TwistedSMC
from pyrogen.processes import Euler, Exponential, FrozenNoise, Solver

__all__ = ["ReverseDiffusion"]

_METHODS: dict[str, Solver] = {
    "ancestral": Exponential(1.0),
    "euler-maruyama": Euler(1.0),
    "exponential": FrozenNoise(),
    "heun": Exponential(1.0, "heun"),
    "multistep": Exponential(1.0, "multistep"),
}
_GUIDANCE: dict[str, Callable[[], Guidance | TwistedSMC]] = {
    "dps": DPS,
    "pigdm": PiGDM,
    "mmps": MMPS,
    "twisted-smc": TwistedSMC,
}


class ReverseDiffusion(Solved):
    r"""Draws of a :class:`~pyrogen.distributions.ScoreBased` site by the reverse diffusion.

    One draw is one run from noise to data, all chains at once; draws are independent. The network
    is asked ``num_steps`` times (twice as often with ``"heun"``), and once more for each corrector
    step.

    Args:
        model: a Pyro model whose one latent site is score-based, or such a distribution itself,
            whose site is then called ``"x"``. ``None``, to be the ``sampler`` of distributions.
        num_steps: how many steps, the last of which denoises (if ``denoise``).
        method: ``"ancestral"``: exact for given data, order 1, at home in all processes;
            ``"multistep"``: SDE-DPM-Solver++(2M), order 2, for few steps; ``"heun"``: order 2, two
            evaluations a step; ``"euler-maruyama"`` and ``"exponential"`` (the noise held): order
            1. The last two need a process with some signal left at the start.
        grid: what is evenly spaced: ``"uniform"``, ``"quadratic"``, ``"log-snr"`` or ``"karras"``;
            see :func:`pyrogen.processes.time_grid`.
        corrector_steps: Langevin steps after each step.
        snr: the signal-to-noise ratio :math:`r` of such a step,
            :math:`x \leftarrow x + 2 r^2 \sigma^2 s + 2 r \sigma z`.
        denoise: end with the mean of the data given the state at ``min_time``.
        compile: run steps as compiled graphs.
        guidance: what the other, observed sites of the model add, by autodifferentiation of the
            model: ``"dps"``, ``"pigdm"``, ``"mmps"``, ``"twisted-smc"``, or one of :class:`DPS`,
            :class:`PiGDM`, :class:`MMPS` and :class:`TwistedSMC` with options of its own. The last
            walks by ancestral steps alone.

    Raises:
        ValueError: for an unknown option; at the start, if the model has other latent sites,
            observed ones without a guidance or none with one, observed ones that the guidance
            cannot heed, or a process that the method cannot start with.
        NonFiniteError: if a state becomes infinite or NaN, with the site and the step.

    References:
        J. Ho, A. Jain, P. Abbeel, *Denoising diffusion probabilistic models*, 2020,
        arXiv:2006.11239. C. Lu et al., *DPM-Solver++: fast solver for guided sampling of diffusion
        probabilistic models*, 2022, arXiv:2211.01095.

    Example:
        >>> from pyrogen.distributions import ScoreBased
        >>> from pyrogen.kernels import MCMC
        >>> from pyrogen.processes import VariancePreserving
        >>> process = VariancePreserving()
        >>> def score(x, t):  # of data N(1, 1/4)
        ...     mean, variance = process.mean_scale(t), process.variance(t)
        ...     return (mean - x) / (0.25 * mean**2 + variance)
        >>> fn = ScoreBased(process, score, (), "score")
        >>> kernel = ReverseDiffusion(fn, 50, method="multistep", grid="karras", compile=False)
        >>> mcmc = MCMC(kernel, num_samples=2, num_chains=2000, disable_progbar=True)
        >>> mcmc.run()
        >>> x = mcmc.get_samples()["x"]
        >>> abs(float(x.mean()) - 1) < 0.05, abs(float(x.std()) - 0.5) < 0.05
        (True, True)
        >>> sampled = ScoreBased(process, score, (), "score", sampler=kernel)
        >>> sampled.sample((3,)).shape
        torch.Size([3])
        >>> import pyro
        >>> def inverse(y):
        ...     x = pyro.sample("x", fn)
        ...     pyro.sample("y", dist.Normal(2 * x, 0.5), obs=y)
        >>> kernel = ReverseDiffusion(inverse, 200, guidance="mmps", compile=False)
        >>> mcmc = MCMC(kernel, num_samples=1, num_chains=2000, disable_progbar=True)
        >>> mcmc.run(torch.tensor(4.0))
        >>> abs(float(mcmc.get_samples()["x"].mean()) - 1.8) < 0.05
        True
    """

    def __init__(
        self,
        model: Callable[..., Any] | ScoreBased | None = None,
        num_steps: int = 500,
        method: str = "ancestral",
        grid: str = "uniform",
        corrector_steps: int = 0,
        snr: float = 0.16,
        denoise: bool = True,
        compile: bool = True,
        guidance: str | Guidance | TwistedSMC | None = None,
    ) -> None:
        self.method = one_of("method", method, tuple(_METHODS))
        super().__init__(
            model, _METHODS[method], num_steps, grid, denoise, compile, corrector_steps, snr
        )
        self.guidance = _named(guidance)
        if isinstance(self.guidance, TwistedSMC) and not (
            method == "ancestral" and corrector_steps == 0 and denoise
        ):
            raise ValueError(
                "guidance 'twisted-smc': expected method='ancestral', corrector_steps=0 and "
                f"denoise=True, got {method!r}, {corrector_steps} and {denoise}; its particles are "
                "weighted for steps of that kind"
            )
        by_steps = isinstance(self.guidance, DPS) and self.guidance.step_size is not None
        if by_steps and (corrector_steps or method == "heun"):
            raise ValueError(
                "guidance DPS(step_size=...): expected corrector_steps=0 and another method than "
                f"'heun', got {corrector_steps} and {method!r}; it says how far the steps of the "
                "sampler go, not what the score is"
            )

    def obstacle(self, fn: ScoreBased) -> str | None:
        """Why a distribution cannot be sampled so; ``None`` if it can."""
        if self.guidance is not None and not bool(fn.process.mean_scale(fn.max_time) > 0):  # type: ignore[arg-type]
            return (
                f"expected some signal at max_time = {fn.max_time:g} for guidance, got none of "
                f"{type(fn.process).__name__}; begin at ScoreBased(..., max_time=0.999)"
            )
        return super().obstacle(fn)

    def target(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]
    ) -> Target:
        """The score-based site of the model, with a guidance given what is observed."""
        if self.guidance is None or self.model is None:
            return super().target(args, kwargs, shapes)
        smc = self.guidance if isinstance(self.guidance, TwistedSMC) else None
        guidance: Any = smc.twist if smc else self.guidance
        target = target_of_posterior(self.model, guidance, args, kwargs)
        potential: Any = target.potential()
        self._check(potential.fn)
        return target

    def __call__(self, fn: ScoreBased, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws, ``[*sample_shape, *batch, *event]``: the kernel as a distribution's ``sampler``.

        Raises:
            NonFiniteError: if a draw is not finite.
            ValueError: if the kernel has a guidance.
        """
        if self.guidance is not None:
            raise ValueError(
                "guidance: expected none in a sampler of distributions, which observe nothing; "
                "give ReverseDiffusion a model with a likelihood"
            )
        return super().__call__(fn, sample_shape)

    # Particles, where there are some, are further chains until the end.

    def _begin(self, potential: Denoising, rows: Tensor) -> tuple[Walk, Tensor]:
        if isinstance(self.guidance, TwistedSMC):
            rows = rows.repeat_interleave(self.guidance.num_particles, 0)
        return super()._begin(potential, rows)

    def first_carry(self, x: Tensor) -> Any:
        """That of the solver, or the weights of particles."""
        if isinstance(self.guidance, TwistedSMC):
            return self.guidance.init(x)
        return super().first_carry(x)

    def move(self, potential: Denoising, walk: Walk, t: Tensor, s: Tensor) -> Walk:
        """A step of the solver, and those of the corrector at its end; or one of particles."""
        if isinstance(self.guidance, TwistedSMC) and isinstance(potential, GuidedDenoising):
            return walk.to(*self.guidance.step(potential.problem, walk.x, walk.carry, t, s))
        return super().move(potential, walk, t, s)

    def _finish(self, potential: Denoising, walk: Walk, t: Tensor) -> Walk:
        if isinstance(self.guidance, TwistedSMC) and isinstance(potential, GuidedDenoising):
            return walk.to(*self.guidance.finish(potential.problem, walk.x, walk.carry, t))
        return super()._finish(potential, walk, t)

    def _drawn(self, walk: Walk) -> tuple[ReverseState, Any]:
        state, info = super()._drawn(walk)
        if isinstance(self.guidance, TwistedSMC):
            return state, ParticleInfo(*info, walk.carry.ess, walk.carry.log_evidence)
        return state, info


class ParticleInfo(NamedTuple):
    """What is to be said of a draw by particles.

    Attributes:
        accept_prob: 1 for every chain.
        diverging: whether a chain went astray: none.
        num_steps: how often the network was asked about each particle.
        ess: the least effective number of particles on the way.
        log_evidence: the logarithm of the chain's estimate of ``p(y)``, in nats.
    """

    accept_prob: Tensor
    diverging: Tensor
    num_steps: Tensor
    ess: Tensor
    log_evidence: Tensor


def _named(guidance: Any) -> Guidance | TwistedSMC | None:
    if guidance is None or isinstance(guidance, (Guidance, TwistedSMC)):
        return guidance
    if isinstance(guidance, str) and guidance in _GUIDANCE:
        return _GUIDANCE[guidance]()
    raise ValueError(
        f"guidance: expected None, one of {', '.join(map(repr, _GUIDANCE))}, or such an object, "
        f"got {guidance!r}"
    )
