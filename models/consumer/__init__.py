"""The event consumer: streams of a store become item statistics, snapshots and the event log. No framework."""
