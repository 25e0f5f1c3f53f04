"""Digests, pieces and peers: how the nodes of a site share blobs. Knows nothing of repositories, tokens or the Hub."""
