"""Training of rankers from the event log."""
