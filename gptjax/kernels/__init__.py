"""Functions with an implementation of their own for speed, each beside a plain one."""
