"""What the XML of a running domain says only of this run, and a definition must not hold."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from lxml import etree

from vmkeep.definition.tree import remove, remove_children

_GENERATED_NETDEV: Final = re.compile(r"(vnet|macvtap|macvlan)[0-9]+", re.ASCII)
# /var/lib/libvirt/qemu/channel/target/domain-1-NAME/..., and /run/libvirt/qemu/channel/1-NAME/... since 9.7.
_GENERATED_CHANNEL: Final = "/qemu/channel/"


def drop_live_parts(root: etree._Element) -> None:
    """Remove from a live domain's tree what libvirt adds for the run.

    Names and numbers given by the user stay: aliases that begin with ``ua-``, network devices with names that
    libvirt does not generate, fixed ports, static security labels.
    """
    root.attrib.pop("id", None)
    for alias in root.findall("devices//alias"):
        if not (alias.get("name") or "").startswith("ua-"):
            remove(alias)
    for label in root.findall("seclabel"):
        _drop_dynamic_label(label)
    for path, drop in _RUNS:
        for device in root.findall(f"devices/{path}"):
            drop(device)


def _drop_disk_run(disk: etree._Element) -> None:
    # The chain below the image as libvirt found it: it looks again at the next start.
    remove_children(disk, ("mirror", "backingStore"))
    source = disk.find("source")
    if source is not None:
        source.attrib.pop("index", None)


def _drop_cid(cid: etree._Element) -> None:
    if cid.get("auto") == "yes":
        cid.attrib.pop("address", None)


def _drop_current_memory(target: etree._Element) -> None:
    remove_children(target, ("current",))


def _drop_dynamic_label(label: etree._Element) -> None:
    if label.get("type") != "dynamic":
        return
    if label.find("baselabel") is None:
        remove(label)
    else:
        remove_children(label, ("label", "imagelabel"))


def _drop_interface_run(interface: etree._Element) -> None:
    target, source = interface.find("target"), interface.find("source")
    if target is not None and _GENERATED_NETDEV.fullmatch(target.get("dev") or ""):
        target.attrib.pop("dev")
        if not target.attrib and len(target) == 0:
            remove(target)
    if source is not None:
        source.attrib.pop("portid", None)
        if interface.get("type") == "network":
            source.attrib.pop("bridge", None)


def _drop_ports(graphics: etree._Element) -> None:
    if graphics.get("autoport") == "yes":
        for attribute in ("port", "tlsPort"):
            if attribute in graphics.attrib:
                graphics.set(attribute, "-1")
    if graphics.attrib.pop("websocketGenerated", "no") == "yes":
        graphics.set("websocket", "-1")
    graphics.attrib.pop("connected", None)


def _drop_device_path(device: etree._Element) -> None:
    device.attrib.pop("tty", None)
    source = device.find("source")
    if source is None:
        return
    generated_path = _GENERATED_CHANNEL in (source.get("path") or "")
    if device.get("type") == "pty" or (device.get("type") == "unix" and generated_path):
        remove(source)


_RUNS: Final[tuple[tuple[str, Callable[[etree._Element], None]], ...]] = (
    ("disk", _drop_disk_run),
    ("interface", _drop_interface_run),
    ("graphics", _drop_ports),
    ("serial", _drop_device_path),
    ("console", _drop_device_path),
    ("parallel", _drop_device_path),
    ("channel", _drop_device_path),
    ("vsock/cid", _drop_cid),
    ("memory/target", _drop_current_memory),
)
