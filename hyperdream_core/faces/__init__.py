"""Faces: finding, judging, choosing and aligning them, and measuring likeness."""
