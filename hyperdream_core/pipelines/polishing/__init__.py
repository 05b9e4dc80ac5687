"""Polishing: rank-relaxed finetuning of an identity on its subject's pictures."""
