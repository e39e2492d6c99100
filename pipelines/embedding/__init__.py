"""Embedding a catalog in blocks by content: only what changed, resumable, by Ray Data or in this process."""
