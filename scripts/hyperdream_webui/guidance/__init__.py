"""Guided sampling in the hosts: an accordion of txt2img and img2img, and the samplers of each host behind it."""
