"""The online store: profiles, recent events, seen sets and event streams of users, behind one port."""
