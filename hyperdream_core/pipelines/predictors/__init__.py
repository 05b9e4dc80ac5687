"""Predictors: networks that answer pictures of a subject with an adapter."""
