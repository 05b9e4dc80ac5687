"""Training of our own networks: the resumable loop, and what predictors learn by."""
