"""A bare Debian in a directory, with a clone of this checkout in it, where the README's commands are run.

It answers what a checkout on a developer's machine cannot: does it work on a machine that has nothing of ours yet, and
does it work with the other Debian's libvirt and QEMU?

Nothing of the machine can be harmed by it. Everything runs in namespaces whose root is the tree: mounts, processes and
the host name of the machine are not in it, its /dev is a tmpfs with nodes of its own, and all of it is gone with the
last process. Standard library only: it runs before anything is installed.
"""
