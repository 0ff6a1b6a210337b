"""Consumers, hooks and processors of installed packages: found, checked, built, scaffolded."""
