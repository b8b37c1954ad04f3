"""``<domainbackup>`` read and written.

Source of the rules: libvirt 9.0's schema domainbackup.rng and its documentation (formatbackup), and what the schema of
11.3 takes beyond it: a server of transport fd, and a disk of a push backup that is chosen and nothing more. What
libvirt itself adds to a running job (``state``, ``index``) is read too, so that its own description can be parsed.
"""

from __future__ import annotations

import re
from typing import Final

from lxml import etree

from vmkeep.moments.errors import LibvirtError, MomentError, schema_error
from vmkeep.moments.model import (
    Backup,
    BackupDisk,
    BackupDiskMode,
    BackupMode,
    BackupServer,
    ServerTransport,
    StoreType,
)
from vmkeep.moments.reading import (
    ABSOLUTE_PATH,
    DISK_TARGET,
    IMAGE_FORMATS,
    read_attributes,
    read_children,
    read_choice,
    read_disks,
    read_leaf,
    read_root,
    read_unsigned,
    written_again,
)
from vmkeep.moments.writing import attributes, escape, indented
from vmkeep.xmltext import element_children, tag_name

_STORE_ELEMENT: Final = {BackupMode.PUSH: "target", BackupMode.PULL: "scratch"}
_STORE_ATTRIBUTE: Final = {StoreType.FILE: "file", StoreType.BLOCK: "dev"}
_DISK_ATTRIBUTES: Final = (
    "name",
    "backup",
    "state",
    "type",
    "backupmode",
    "incremental",
    "exportname",
    "exportbitmap",
    "index",
)
_SERVER_NAME: Final = re.compile(r"[a-zA-Z0-9.\-]+|[0-9a-fA-F:.]+", re.ASCII)


def parse_backup(xml: str) -> Backup:
    """Return a backup read from XML. Raises MomentError."""
    root = read_root(xml, "domainbackup")
    read_attributes(root, ("mode", "id"))
    mode = BackupMode(read_choice(root, "mode", ("push", "pull")) or "push")
    read_children(root, ("incremental", "server", "disks"))
    incremental, server, disks = root.find("incremental"), root.find("server"), root.find("disks")
    if mode is BackupMode.PUSH and server is not None:
        raise schema_error("server", "a push backup has no <server>; use mode='pull'")
    if mode is BackupMode.PULL and server is None:
        raise schema_error("server", "a pull backup must have a <server>")
    return Backup(
        mode=mode,
        incremental=None if incremental is None else read_leaf(incremental) or None,
        server=None if server is None else _read_server(server),
        disks=() if disks is None else tuple(_read_disk(disk, mode) for disk in read_disks(disks)),
    )


def format_backup(backup: Backup) -> str:
    """Return the backup as libvirt 9.0 writes it, byte for byte."""
    lines = [f"<domainbackup mode='{backup.mode}'>"]
    if backup.incremental:
        lines.append(f"  <incremental>{escape(backup.incremental)}</incremental>")
    if backup.server is not None:
        server = backup.server
        values = {
            "transport": server.transport.value,
            "tls": None if server.tls is None else _yes_no(server.tls),
            "name": server.name,
            "port": server.port,
            "socket": server.socket,
            "fdgroup": server.fd_group,
        }
        lines.append(f"  <server{attributes(values)}/>")
    if backup.disks:
        lines.append("  <disks>")
        for disk in backup.disks:
            lines += _format_disk(disk, backup.mode)
        lines.append("  </disks>")
    return "\n".join([*lines, "</domainbackup>", ""])


def luks_content(secret_uuid: str) -> str:
    """Return what stands inside a target or scratch that QEMU encrypts, for ``BackupDisk.store_content``."""
    secret = attributes({"type": "passphrase", "uuid": secret_uuid})
    return f"<encryption format='luks'>\n  <secret{secret}/>\n</encryption>"


def _yes_no(value: bool) -> str:
    return "yes" if value else "no"


def _format_selection(disk: BackupDisk, mode: BackupMode) -> str | None:
    """Return the value of ``backup``; of a pull backup the schema allows 'yes' only beside a type."""
    if disk.backup and disk.store_type is None and mode is BackupMode.PULL:
        return None
    return _yes_no(disk.backup)


def _format_disk(disk: BackupDisk, mode: BackupMode) -> list[str]:
    values = {
        "name": disk.name,
        "backup": _format_selection(disk, mode),
        "state": disk.state,
        "type": disk.store_type.value if disk.store_type is not None and disk.backup else None,
        "backupmode": disk.mode.value if disk.mode is not None and disk.backup else None,
        "incremental": disk.incremental if disk.backup else None,
        "exportname": disk.export_name if disk.backup else None,
        "exportbitmap": disk.export_bitmap if disk.backup else None,
        "index": disk.index,
    }
    opening = f"    <disk{attributes(values)}"
    children: list[str] = []
    if disk.backup and disk.store_format is not None:
        children.append(f"      <driver{attributes({'type': disk.store_format})}/>")
    if disk.backup and disk.store is not None:
        children += _format_store(disk, disk.store, mode)
    return [f"{opening}>", *children, "    </disk>"] if children else [f"{opening}/>"]


def _format_store(disk: BackupDisk, store: str, mode: BackupMode) -> list[str]:
    tag = _STORE_ELEMENT[mode]
    opening = f"      <{tag}{attributes({_STORE_ATTRIBUTE[disk.store_type or StoreType.FILE]: store})}"
    if not disk.store_content:
        return [f"{opening}/>"]
    return [f"{opening}>", indented(disk.store_content, 8), f"      </{tag}>"]


def _read_server(element: etree._Element) -> BackupServer:
    read_attributes(element, ("transport", "tls", "name", "port", "socket", "fdgroup"))
    read_children(element, ())
    transport = ServerTransport(read_choice(element, "transport", tuple(ServerTransport)) or "tcp")
    tls = read_choice(element, "tls", ("yes", "no"))
    name, port, socket = element.get("name"), element.get("port"), element.get("socket")
    fd_group = element.get("fdgroup")
    if (fd_group is not None) != (transport is ServerTransport.FD):
        raise schema_error("server", "a server of transport fd has an fdgroup, and no other has one")
    if transport is ServerTransport.FD:
        if name is not None or port is not None or socket is not None:
            raise schema_error("server", "a server of transport fd has no name, port or socket")
    elif transport is ServerTransport.UNIX:
        if name is not None or port is not None or socket is None or ABSOLUTE_PATH.fullmatch(socket) is None:
            raise schema_error("server", "a unix server has an absolute socket path, and no name or port")
    elif socket is not None or name is None or _SERVER_NAME.fullmatch(name) is None:
        raise schema_error("server", "a tcp server has the name of a host, and no socket")
    return BackupServer(
        transport=transport,
        tls=None if tls is None else tls == "yes",
        name=name,
        port=None if port is None else read_unsigned("server", port, bits=32),
        socket=socket,
        fd_group=fd_group,
    )


def _read_disk(element: etree._Element, mode: BackupMode) -> BackupDisk:
    read_attributes(element, _DISK_ATTRIBUTES)
    read_children(element, ("driver", _STORE_ELEMENT[mode]))
    name = element.get("name")
    if name is None or DISK_TARGET.fullmatch(name) is None:
        raise schema_error("disk", f"a <disk> of a backup is named by its target, not {name!r}")
    export_name, export_bitmap = element.get("exportname"), element.get("exportbitmap")
    if mode is BackupMode.PUSH and (export_name is not None or export_bitmap is not None):
        raise schema_error("disk", f"disk {name!r}: exportname and exportbitmap are for pull backups")
    disk_mode, incremental = _read_disk_mode(element, name)
    selection = read_choice(element, "backup", ("yes", "no"))
    selected = selection != "no"
    kind = read_choice(element, "type", ("file", "block"))
    if mode is BackupMode.PULL and selection == "yes" and kind is None:
        raise schema_error("disk", f"disk {name!r} of a pull backup has backup='yes' and must have a type with it")
    store_type, store, store_content = _read_store(element, mode, kind)
    driver = element.find("driver")
    _refuse_misfit(name, mode, selected=selected, kind=kind, store=store, driver=driver is not None)
    index = element.get("index")
    return BackupDisk(
        name=name,
        backup=selected,
        mode=disk_mode,
        incremental=incremental,
        export_name=export_name,
        export_bitmap=export_bitmap,
        store_type=store_type,
        store=store,
        store_format=None if driver is None else _read_driver(driver, mode),
        store_content=store_content,
        state=element.get("state"),
        index=None if index is None else read_unsigned("disk", index, bits=32),
    )


def _read_disk_mode(element: etree._Element, name: str) -> tuple[BackupDiskMode | None, str | None]:
    text = read_choice(element, "backupmode", ("full", "incremental"))
    incremental = element.get("incremental")
    if text == "full" and incremental is not None:
        raise schema_error("disk", f"disk {name!r} has backupmode='full' and cannot have incremental={incremental!r}")
    return (None if text is None else BackupDiskMode(text)), incremental


def _refuse_misfit(
    name: str, mode: BackupMode, *, selected: bool, kind: str | None, store: str | None, driver: bool
) -> None:
    if not selected:
        if kind is not None or store is not None or driver:
            raise schema_error("disk", f"disk {name!r} has backup='no' and cannot have a type, driver or store")
        return
    if mode is BackupMode.PUSH and kind is None and (store is not None or driver):
        raise schema_error("disk", f"disk {name!r} of a push backup has a target and must have type='file' or 'block'")
    if mode is BackupMode.PULL and kind == "block" and store is None:
        raise schema_error("disk", f"disk {name!r} has type='block' and must have <scratch dev=...>")
    if mode is BackupMode.PULL and driver and store is None:
        raise schema_error("disk", f"disk {name!r} has a <driver> and must have a <scratch>")


def _read_driver(element: etree._Element, mode: BackupMode) -> str:
    read_attributes(element, ("type",))
    read_children(element, ())
    kind = element.get("type")
    if not kind:
        raise schema_error("driver", "<driver> must have a type")
    if mode is BackupMode.PULL and kind != "qcow2":
        raise schema_error("driver", f"the scratch of a pull backup is qcow2, not {kind!r}")
    if kind not in (*IMAGE_FORMATS, "luks"):
        raise schema_error("driver", f"{kind!r} is no format of images")
    return kind


def _read_store(
    element: etree._Element, mode: BackupMode, kind: str | None
) -> tuple[StoreType | None, str | None, str]:
    """Return kind, path and inner XML of the target or scratch."""
    store_type = None if kind is None else StoreType(kind)
    store = element.find(_STORE_ELEMENT[mode])
    if store is None:
        return store_type, None, ""
    store_type = store_type or StoreType.FILE
    attribute = _STORE_ATTRIBUTE[store_type]
    read_attributes(store, (attribute,))
    read_children(store, ("seclabel", "encryption"), repeated=("seclabel",))
    path = store.get(attribute)
    if path is None:
        raise schema_error(tag_name(store), f"<{tag_name(store)}> of type {store_type} must have {attribute}=PATH")
    if ABSOLUTE_PATH.fullmatch(path) is None:
        raise MomentError(LibvirtError.VIR_ERR_XML_INVALID_SCHEMA, tag_name(store), f"{path!r} is not an absolute path")
    content = "\n".join(line for child in element_children(store) for line in written_again(child))
    return store_type, path, content
