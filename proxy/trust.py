"""How a node proves to its peers that it belongs to the mesh."""

from __future__ import annotations

from mesh.auth import Auth, load_key
from mesh.tls import load_tls
from proxy.settings import Settings


def auth_of(settings: Settings, node_id: str) -> Auth:
    """This node's proof, from the settings. Raises OSError and ValueError for an unusable key or certificate."""
    key = load_key(settings.mesh_key_file) if settings.mesh_key_file else None
    tls = load_tls(*settings.mesh_tls_files) if settings.mesh_tls_files else None
    return Auth(node_id, key, tls=tls)
