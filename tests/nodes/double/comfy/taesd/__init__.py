"""Tiny autoencoders."""
