"""HTTP towards clients and towards the Hub."""
