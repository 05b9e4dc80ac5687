"""The embedded world: procedural people and pets, a small Stable-Diffusion-shaped base, its predictor and judges."""
