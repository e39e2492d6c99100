"""A package, so that the deployment which its tests share ends with them."""
