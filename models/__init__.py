"""What is computed: stores, encoders, indexes, rankers, reasons, artifacts. Knows nothing of Ray or HTTP."""
