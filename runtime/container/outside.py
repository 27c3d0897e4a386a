"""What a parent does for a child that waits for it: id maps, limits that only the host's root may set, mounts.

Values that travel with a plan; done by `idmap` and `spawning`.
"""

from __future__ import annotations

from runtime.record import ordered_record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


@ordered_record
class Tree:
    """A host path to be handed to the child as a detached mount, of whole trees when `recursive`.

    `mapped` shifts its owners: by the maps given or, where they are empty, by those of the child's user namespace;
    `deep` those of what is mounted below it too.
    """

    path: bytes
    recursive: bool = False
    mapped: bool = False
    deep: bool = False
    uid_map: bytes = b""
    gid_map: bytes = b""


@ordered_record
class OverlayTree:
    """An overlay as in `mounting.Overlay`, its layers shifted to the child's ids; `uid`:`gid` of the host mounts it."""

    layers: tuple[bytes, ...]
    directory: bytes
    flags: int
    uid: int
    gid: int


@ordered_record
class Outside:
    """Everything for one child. The trees arrive in their order, the overlay after them.

    `uid_map` and `gid_map` are the lines of a new user namespace, `limits` (number, soft, hard) as for prlimit(2).
    """

    uid_map: bytes = b""
    gid_map: bytes = b""
    limits: tuple[tuple[int, int, int], ...] = ()
    oom_score_adj: int | None = None
    trees: tuple[Tree, ...] = ()
    overlay: OverlayTree | None = None

    def to_row(self) -> tuple[Any, ...]:
        """As plain values: what marshal can carry."""
        trees = tuple(_values(tree) for tree in self.trees)
        overlay = None if self.overlay is None else _values(self.overlay)
        return self.uid_map, self.gid_map, self.limits, self.oom_score_adj, trees, overlay

    @classmethod
    def from_row(cls, row: tuple[Any, ...]) -> Outside:
        """What `to_row` was given."""
        uid_map, gid_map, limits, oom_score_adj, trees, overlay = row
        made = None if overlay is None else OverlayTree(*overlay)
        return cls(uid_map, gid_map, limits, oom_score_adj, tuple(Tree(*tree) for tree in trees), made)


def _values(value: Tree | OverlayTree) -> tuple[Any, ...]:
    return tuple(getattr(value, name) for name in value.__match_args__)
