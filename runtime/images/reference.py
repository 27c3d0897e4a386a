"""What a name means to a registry: Docker's rules for names that leave the registry out.

Not for the grammar of names (`runtime.spec.ImageRef`).
"""

from __future__ import annotations

from dataclasses import replace

from runtime.spec import ImageRef

_DOCKER_HUB = ("docker.io", "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com")


def familiar(ref: ImageRef) -> ImageRef:
    """`ref` as a store names it: `docker.io/library/debian:12` is `debian:12`."""
    if ref.registry not in (None, *_DOCKER_HUB):
        return ref
    name = ref.name.removeprefix("library/")
    return replace(ref, registry=None, name=name if name and "/" not in name else ref.name)


def repository(ref: ImageRef) -> tuple[str, str]:
    """(the registry's HOST[:PORT], the repository's path there): Docker Hub for a name without a registry."""
    short = familiar(ref)
    if short.registry is not None:
        return short.registry, short.name
    return "registry-1.docker.io", short.name if "/" in short.name else f"library/{short.name}"
