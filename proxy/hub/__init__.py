"""The Hub's grammar and rules, as pure functions: no await, no clock, no disk."""
