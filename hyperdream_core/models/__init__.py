"""Trainable and adapted modules; they know shapes, never paths."""
