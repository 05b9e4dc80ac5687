"""HyperDream without any host: one face picture in, a person you can prompt for out."""
