"""Noise: what a network of diffusion or of a flow is asked for at a noise level, and which levels to ask at.

`t` is the noise level, a float, 0 clean to 1 noise. A network's own time, such as an integer timestep, is known in this
room and to the adapters of base models; everybody else speaks of `t`.
"""

from .discrete import PREDICTION_TYPES, DiscreteDiffusion, alphas_cumprod, to_t, to_timestep, zero_terminal_snr
from .flow import RectifiedFlow
from .levels import biased_t, min_snr_weight
from .process import Coefficients, NoiseProcess

__all__ = [
    "PREDICTION_TYPES",
    "Coefficients",
    "DiscreteDiffusion",
    "NoiseProcess",
    "RectifiedFlow",
    "alphas_cumprod",
    "biased_t",
    "min_snr_weight",
    "to_t",
    "to_timestep",
    "zero_terminal_snr",
]
