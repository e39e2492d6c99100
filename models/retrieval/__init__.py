"""Retrieval: from a user's state to a few hundred candidates, by several sources side by side."""
