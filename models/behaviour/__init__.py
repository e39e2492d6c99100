"""What events teach without a neural network: transitions, item-item weights, popularity over time."""
