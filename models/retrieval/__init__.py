"""Retrieval: sources that each propose items for one user, and the merge that makes one list of them."""
