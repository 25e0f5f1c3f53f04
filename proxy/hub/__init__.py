"""The Hub's URLs, headers and rules, as pure functions: no await, no clock, no disk."""
