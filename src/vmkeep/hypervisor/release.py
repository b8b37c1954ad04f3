"""libvirt's objects are freed between calls, never in the middle of one.

libvirt keeps the last error of each thread and forgets it when its next function is called, also one that frees an
object; its Python module asks for it only after the function has failed. Between the two Python may collect garbage, in
that thread, and free a VM or checkpoint that lay in a cycle (an exception's frames are one): the error comes without
code and text. 1,995 of 2,000 look-ups lost theirs when each was made beside such a cycle (libvirt 9.0); `doctor` was
seen to end in just the TypeError that this gives (11.3). So an object that nobody uses any more is put by, and freed
before the next call.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final

import libvirt

_unused: Final[deque[Callable[[], None]]] = deque()


def free_unused() -> None:
    """Free what nobody uses any more. The caller is about to call libvirt, and awaits no error of this thread."""
    while _unused:
        try:
            free = _unused.popleft()
        except IndexError:
            return  # another thread has taken the last
        free()


def _put_by(kind: Any) -> None:
    free = kind.__del__

    def end(thing: Any, *, put_by: Callable[[Callable[[], None]], None] = _unused.append) -> None:
        # Python calls this once for an object, also when it comes to life again here; so it is `free` that ends it.
        # `put_by` is bound, because at the end of Python this module has lost its names already.
        put_by(lambda: free(thing))

    kind.__del__ = end


for _kind in list(vars(libvirt).values()):
    if isinstance(_kind, type) and "__del__" in vars(_kind):
        _put_by(_kind)
