"""Offline evaluation: protocol, metrics, intervals, baselines. One command reproduces every figure."""
