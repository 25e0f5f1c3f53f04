"""The sub-commands of `hubmesh`, one per module. Each imports slow modules only when it runs."""
