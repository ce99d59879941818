"""Every figure in README.md and docs/: scripts that measure, JSON that they wrote, a table."""
