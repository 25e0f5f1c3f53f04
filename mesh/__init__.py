"""Digests, pieces and peers: how nodes share blobs. Knows nothing of repositories, tokens or the Hub."""
