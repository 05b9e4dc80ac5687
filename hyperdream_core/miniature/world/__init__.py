"""The miniature's world: people and pets, what they wear, where they are, and how all is painted."""
