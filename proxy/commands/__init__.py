"""The sub-commands of `hubmesh`, one a file. Each imports what is heavy only when it runs."""
