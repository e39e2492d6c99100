"""Rankers: cross-encoders that let a user's history and a candidate attend to each other."""
