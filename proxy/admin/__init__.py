"""The node's own pages under `/-/`: health, metrics, status, dashboard, actions."""
