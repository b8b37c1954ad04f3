"""Whether the deletion of a snapshot destroys what stands on its images."""

from __future__ import annotations

from vmkeep.values import dataclass

Chain = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ImageUser:
    """Something that needs an image as it is, and the images of its chain, the top one first.

    ``snapshot`` is its name when it is one of the VM, ``inside`` when that is in its image itself. ``is_file``: nothing
    is known of it but the file.
    """

    what: str
    chain: Chain
    snapshot: str = ""
    is_file: bool = False
    inside: bool = False


def is_harmed(user: ImageUser, overlay: str, below: str, present: Chain) -> bool:
    """Tell whether something that needs the images of its chain loses one of them.

    In the chain that the VM is on (``present``) libvirt writes the overlay into the image below: what stands on the
    overlay there is told of that, and so is a snapshot whose state is the overlay's. Elsewhere it can only remove the
    overlay. A snapshot in an image bears what is written to it, and goes with it.
    """
    top = user.chain[0]
    if user.inside and top in (overlay, below):
        return top == overlay
    if overlay not in present:
        return overlay in user.chain
    if top in present:
        return top == below
    return overlay in user.chain or below in user.chain
