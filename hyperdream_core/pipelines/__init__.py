"""The verbs: what a user can ask for, each a function with its config."""
