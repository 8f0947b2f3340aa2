"""The vocabulary of Troupe: every message, every subject and the one way onto the bus, shared by all parts."""
