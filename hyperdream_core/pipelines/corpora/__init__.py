"""Corpora: the subjects that a predictor learns from, collected, encoded and read."""
