"""Weights in 8 or 4 bits: kinds of codes, packing, dequantising, and the fit of codes to a weight."""

from __future__ import annotations

from .fit import FITS, quantize
from .kinds import KINDS, bits_per_weight, stored_bytes
from .packed import QuantizedWeight, dequantize

__all__ = ["FITS", "KINDS", "QuantizedWeight", "bits_per_weight", "dequantize", "quantize", "stored_bytes"]
