"""Items that arrive, change and go between two releases: their log, and what it does to a loaded release."""
