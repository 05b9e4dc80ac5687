"""HyperDream's tab for Automatic1111's web UI and Forge: thin parts around the core, and all that these hosts are."""
