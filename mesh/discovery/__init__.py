"""Ways of learning the addresses of other nodes."""
