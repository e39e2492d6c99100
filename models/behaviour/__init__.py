"""What users did, condensed: transitions, collaborative factors and statistics, fitted from an event log."""
