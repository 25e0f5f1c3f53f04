"""The HTTP side of a node: towards clients and towards the Hub."""
