"""Benchmarks beside peers; each command ends in one JSON line with its targets."""
