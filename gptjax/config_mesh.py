"""How several devices share the work of a run: settings."""

from dataclasses import dataclass


@dataclass(frozen=True)
class MeshConfig:
    """How devices share the work, as data x fsdp x model. One size may be -1: all that are left.

    The mesh changes no batch, no initial weight and no dropout mask.
    """

    data: int = -1
    """Devices that split the batch, each with a whole model."""
    fsdp: int = 1
    """Devices that split the batch, and each keep a part of every parameter (fully sharded)."""
    model: int = 1
    """Devices that split every matmul (tensor parallel). Keep it within one machine."""
