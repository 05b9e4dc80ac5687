"""Bytes to checked dataclasses and back."""
