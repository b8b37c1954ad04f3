"""Restores on this host: what is written where, under which identity, whole or not at all.

Everything is written beside its place (``.NAME.ID.partial`` in the same directory), synced, and renamed only when
all of it is there; the definition comes last. Each task can be repeated after a crash.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, cast

from vmkeep.config import Settings
from vmkeep.definition import (
    Definition,
    DefinitionError,
    TpmBackend,
    parse_definition,
)
from vmkeep.errors import (
    ChoiceRequired,
    IntegrityError,
    InvalidRequest,
    StateUnsupported,
    TargetExists,
    VmkeepError,
)
from vmkeep.filesystem import file_error, file_errors, require_descriptors, sync_directory
from vmkeep.fitting import Fit, StoredVariables, Wish
from vmkeep.host.restores.landing import below, disk_place, image_format, refuse_images_of_vms, variables_place
from vmkeep.host.restores.newdefinition import NewDefinition
from vmkeep.host.restores.reach import OwnVm
from vmkeep.host.restores.selection import STATE, asked_disks
from vmkeep.host.restores.suitability import fit_definition, told_of_firmware
from vmkeep.host.tasks.restores import (
    DefineVm,
    DeliveredItem,
    DeliverItems,
    DiscardReplaced,
    FilesPrepared,
    ItemsDelivered,
    PrepareFiles,
    PrepareVm,
    PublishItems,
    UndefineVm,
    VmPrepared,
    WithdrawItems,
)
from vmkeep.host.tasks.survey import Progress
from vmkeep.host.vm.keys import RestoredKeys, secrets_of_point, told_of_encryption
from vmkeep.host.vm.secrets import define_secrets, forget_secrets, needed_secrets, plan_secrets, secret_file
from vmkeep.hypervisor import Domain, Hypervisor
from vmkeep.paths import remove_file
from vmkeep.planning import ExclusionReason
from vmkeep.repository import PointRecord, Repository, StateRef
from vmkeep.statefiles.capture import needs_another_file
from vmkeep.statefiles.installation import make_folder, publish, remove, stage_file, stage_tpm, withdraw
from vmkeep.statefiles.location import StateRoots, swtpm_owner
from vmkeep.transfer.delivery import deliver_disk
from vmkeep.transfer.images import LUKS
from vmkeep.transfer.tools import require_tools

_DEFINITION_FILE = "domain.xml"
# The image, its directory, sockets and pipes of qemu-nbd, and as much again for what the libraries open for a moment.
_RESTORE_DESCRIPTORS = 48


# -- to files --------------------------------------------------------------------------------------------------


def prepare_files(connect: Callable[[], Hypervisor], repository: Repository, request: PrepareFiles) -> FilesPrepared:
    """Choose the paths below the output directory, which is made when its parent is there.

    Raises SecretMissing or SecretPrivate for a disk that was encrypted and cannot be encrypted again: what was no
    plain data on the host does not become so unasked.
    """
    record = _asked(repository.point(request.point_id), request.only)
    secrets = secrets_of_point(record, connect) if not request.decrypt else {}
    output = Path(request.output)
    disks: list[DeliveredItem] = []
    for disk in record.disks:
        secret = secrets.get(disk.target, "")
        # What is nothing but LUKS is no raw image, although a VM's definition calls it so.
        extension = LUKS if secret and request.image_format == "raw" else request.image_format
        place = below(output, f"{disk.target}.{extension}")
        disks.append(replace(item_at("disk", disk.target, place, request.operation, extension), secret=secret))
    states = [
        item_at("nvram", "nvram", output / "nvram.fd", request.operation)
        if state.kind == "nvram"
        else item_at("tpm", "tpm", output / "tpm", request.operation)
        for state in record.states
    ]
    definition = item_at("definition", "definition", output / _DEFINITION_FILE, request.operation)
    items = (*disks, *states, *(() if request.only else (definition,)), *_secret_items(record, output, request))
    _require_tools(items)
    _refuse_existing(items, force=request.force)
    warnings = (*_absences(record), *told_of_encryption(record, secrets), *_told_of_secrets(record, request))
    return FilesPrepared(items, warnings, str(output) if _make_directory(output) else "")


def _require_tools(items: Sequence[DeliveredItem]) -> None:
    """Raise ToolMissing for an image that QEMU's tools encrypt; all others are written without them."""
    for item in items:
        if item.secret:
            require_tools("qemu-img", "qemu-nbd", "setpriv", doing=f"write {item.final}, which is encrypted")


def _asked(record: PointRecord, only: Sequence[str]) -> PointRecord:
    """Return the point with no more than the parts that were asked for. Raises InvalidRequest."""
    if not only:
        return record
    targets = asked_disks(record, only)
    asked = replace(
        record,
        disks=tuple(disk for disk in record.disks if disk.target in targets),
        states=record.states if STATE in only else (),
    )
    if not asked.disks and not asked.states:
        raise InvalidRequest(f"point {record.id} holds nothing of what was asked for", vm=record.vm_name)
    return asked


def _make_directory(output: Path) -> bool:
    """Make the directory; False when it is there already."""
    try:
        output.mkdir(mode=0o700)
    except FileExistsError as error:
        if not output.is_dir():
            raise TargetExists(f"{output} is not a directory", path=str(output)) from error
        return False
    except OSError as error:
        raise file_error(error, output) from error
    return True


def _secret_items(record: PointRecord, output: Path, request: PrepareFiles) -> list[DeliveredItem]:
    """Return the two files of each secret, for virsh secret-define and virsh secret-set-value."""
    if not request.secrets:
        return []
    return [
        item_at("secret", secret.uuid, below(output, f"secret-{secret.uuid}.{extension}"), request.operation, extension)
        for secret in record.secrets
        for extension in ("xml", "base64")
    ]


def _told_of_secrets(record: PointRecord, request: PrepareFiles) -> list[str]:
    if request.secrets or not record.secrets:
        return []
    uuids = ", ".join(secret.uuid for secret in record.secrets)
    return [f"What is encrypted with libvirt's secret {uuids} needs it: --secrets writes it too, in plain text."]


# -- as a VM ---------------------------------------------------------------------------------------------------


def prepare_vm(hypervisor: Hypervisor, repository: Repository, settings: Settings, request: PrepareVm) -> VmPrepared:
    """Decide identity, paths and definition of the VM to be made (the rules of identity: docs/guide/restore.md)."""
    record = repository.point(request.point_id)
    original = _definition_then(record)
    refuse_vm_name(request.name)
    if hypervisor.find(request.name) is not None:
        raise TargetExists(
            f"a VM named {request.name!r} is on this host already",
            vm=request.name,
            hint="Choose another name with --as, or undefine that VM first; a VM is never overwritten.",
        )
    disk_secrets = secrets_of_point(record, lambda: hypervisor)
    owner = hypervisor.find_uuid(record.vm_uuid)
    same = not request.elsewhere and owner is None
    tpm = _tpm_choice(record, original, request, owner.name if owner is not None else None, same=same)
    identity_uuid = record.vm_uuid if same else str(uuid.uuid4())
    roots = StateRoots.of(hypervisor.uri)
    items = [
        replace(
            item_at(
                "disk",
                disk.target,
                disk_place(disk, request, record, settings, hypervisor),
                request.operation,
                image_format(disk),
            ),
            secret=disk_secrets.get(disk.target, ""),
        )
        for disk in record.disks
    ]
    own_vm = OwnVm.of(hypervisor, record.vm_uuid)
    nvram = variables_place(original, request.name, roots, own_vm)
    for state in record.states:
        if state.kind == "nvram":
            items.append(item_at("nvram", "nvram", nvram, request.operation))
        elif state.kind == "tpm" and tpm == "same":
            items.append(item_at("tpm", "tpm", roots.tpm_directory(identity_uuid), request.operation))
    _refuse_shared_paths(items)
    _require_tools(items)
    _refuse_existing(items, force=request.force)
    refuse_images_of_vms(items, hypervisor)
    if tpm == "new" and os.path.lexists(roots.tpm_directory(identity_uuid)):
        raise TargetExists(
            "a TPM state directory of the original is still on this host, so the VM would not get a new TPM",
            vm=request.name,
            path=str(roots.tpm_directory(identity_uuid)),
            hint="Move the directory away if it is not needed, or restore with --tpm same.",
        )
    identity: Literal["same", "new"] = "same" if same else "new"
    secrets = plan_secrets(
        hypervisor, repository, record, needed_secrets(original), vm=request.name, must_open=tpm == "same"
    )
    # Made here to refuse early what cannot be made, or does not fit this host; DefineVm makes it again.
    made = NewDefinition(hypervisor, record, original, request.name, identity_uuid, identity, items, own_vm, request)
    judged = made.judged()
    fitted = _fitted(hypervisor, record, original, judged.definition, items, made.wish, request.name)
    settled = made.settled(fitted.definition)
    sealed = told_of_firmware(hypervisor, record.host, original, made.wish) if tpm == "same" else ()
    return VmPrepared(
        name=request.name,
        uuid=identity_uuid,
        identity=identity,
        tpm=tpm,
        items=tuple(items),
        warnings=(*_absences(record), *judged.told, *settled.told, *secrets.warnings, *sealed),
        secrets=secrets.absent,
        changes=tuple((misfit.change, misfit.guest) for misfit in fitted.misfits),
    )


def _definition_then(record: PointRecord) -> Definition:
    """Return the definition that the point holds; raises IntegrityError for one that is none."""
    try:
        return parse_definition(record.definition)
    except DefinitionError as error:
        raise IntegrityError(
            f"point {record.id} holds no definition of a VM that can be read: {error}",
            vm=record.vm_name,
            hint="`--output DIR --decrypt --only disks` writes its disks; a VM can be defined around them by hand.",
        ) from error


def refuse_vm_name(name: str) -> None:
    """Raise InvalidRequest for what libvirt takes for no VM's name; files are named after it."""
    if not name.strip() or "/" in name or "\n" in name:
        raise InvalidRequest(f"{name!r} cannot be a VM's name: it must hold text, and no '/' or line break", vm=name)


def define_vm(hypervisor: Hypervisor, repository: Repository, request: DefineVm) -> None:
    """Define the VM, after its secrets; when an earlier attempt did so already, that is fine."""
    existing = hypervisor.find_uuid(request.uuid)
    if existing is None:
        record = repository.point(request.point_id)
        original = _definition_then(record)
        own_vm = OwnVm.of(hypervisor, record.vm_uuid)
        made = NewDefinition(
            hypervisor, record, original, request.name, request.uuid, request.identity, request.items, own_vm, request
        )
        definition = made.judged().definition
        fitted = _fitted(hypervisor, record, original, definition, request.items, made.wish, request.name)
        definition = made.settled(fitted.definition).definition
        needed, must_open = needed_secrets(original), any(item.role == "tpm" for item in request.items)
        plan = plan_secrets(hypervisor, repository, record, needed, vm=request.name, must_open=must_open)
        try:
            define_secrets(hypervisor, repository, record, plan)
            defined = hypervisor.define(definition, request.name)
            try:
                _refuse_what_was_dropped(original, defined)
            except BaseException:
                defined.undefine()
                raise
        except BaseException:
            with contextlib.suppress(VmkeepError):  # what went wrong first is what counts
                forget_secrets(hypervisor, repository, record, request.secrets)
            raise
    elif existing.name != request.name:
        raise TargetExists(f"a VM with the UUID {request.uuid} appeared meanwhile: {existing.name!r}", vm=existing.name)


def _refuse_what_was_dropped(original: Definition, defined: Domain) -> None:
    """Raise StateUnsupported when libvirt left out of the definition how the UEFI variables are stored.

    libvirt 9.0 accepts format='qcow2' and drops it (tried); the firmware would then find a qcow2 header where its
    variables should be. 9.2 knows it.
    """
    wanted = original.firmware.nvram_format
    if parse_definition(defined.definition_xml(inactive=True)).firmware.nvram_format != wanted:
        raise StateUnsupported(
            f"the UEFI variables of the point are in the format {wanted}, which the libvirt of this host does not know",
            vm=defined.name,
            hint="libvirt 9.2 and later know qcow2. On this host: restore with --output, make nvram.fd raw "
            "(qemu-img convert -O raw), and define domain.xml without the format.",
        )


def _fitted(
    hypervisor: Hypervisor,
    record: PointRecord,
    original: Definition,
    definition: str,
    items: Sequence[DeliveredItem],
    wish: Wish,
    name: str,
) -> Fit:
    """Return the definition as it fits this host. Raises HostUnfit."""
    ref = next((state for state in record.states if state.kind == "nvram"), None)
    place = next((item.final for item in items if item.role == "nvram"), "")
    variables = (
        None
        if ref is None
        else StoredVariables(size_bytes=ref.size_bytes, format=original.firmware.nvram_format, path=place)
    )
    return fit_definition(hypervisor, definition, wish, variables, vm=name, source=f"point {record.id}")


def undefine_vm(hypervisor: Hypervisor, repository: Repository, request: UndefineVm) -> None:
    """Undo ``define_vm``."""
    existing = hypervisor.find_uuid(request.uuid)
    if existing is not None:
        existing.undefine()
    if request.secrets:
        forget_secrets(hypervisor, repository, repository.point(request.point_id), request.secrets)


# -- the items of both -----------------------------------------------------------------------------------------


def deliver_items(
    connect: Callable[[], Hypervisor],
    repository: Repository,
    settings: Settings,
    request: DeliverItems,
    *,
    stop: Callable[[], None],
    watch: Callable[[Progress], None],
) -> ItemsDelivered:
    """Write every item at its staged path; on failure none of them stays."""
    record = repository.point(request.point_id)
    require_descriptors(_RESTORE_DESCRIPTORS + 4 * settings.workers, f"the restore of point {record.id}")
    sizes = {disk.target: disk.stored.size_bytes for disk in record.disks}
    total = sum(sizes[item.name] for item in request.items if item.role == "disk")
    done = written = 0
    try:
        for item in request.items:
            stop()
            if item.role == "disk":
                before = done

                def progress(position: int, target: str = item.name, base: int = before) -> None:
                    watch(Progress("writing", target, base + position, total))

                keys = RestoredKeys(connect, record.vm_name)
                written += _deliver_disk(repository, record, item, settings, keys, stop, progress)
                done += sizes[item.name]
            else:
                written += _deliver_small(repository, record, item, for_hypervisor=request.for_hypervisor)
    except BaseException:
        withdraw_items(WithdrawItems(request.items))
        raise
    return ItemsDelivered(written)


def publish_items(request: PublishItems) -> tuple[str, ...]:
    """Rename all items into place and return their paths."""
    for item in request.items:
        publish(Path(item.staged), Path(item.final), aside=_aside(item), marker=_marker(item), force=request.force)
    return tuple(item.final for item in request.items)


def withdraw_items(request: WithdrawItems) -> None:
    """Remove what was staged and, of what was published, only what came from our staging."""
    for item in request.items:
        withdraw(Path(item.staged), Path(item.final), aside=_aside(item), marker=_marker(item))
    if request.directory:
        with contextlib.suppress(OSError):  # somebody put something into it
            Path(request.directory).rmdir()


def discard_replaced(request: DiscardReplaced) -> tuple[str, ...]:
    """Remove what was kept aside, now that all else is done; return a sentence for each file that stays.

    A file that cannot be removed ends nothing: some of what was replaced is gone by then, so there is no way back.
    """
    left = []
    for item in request.items:
        for path in (_aside(item), _marker(item)):
            try:
                remove(path)
            except VmkeepError as error:
                left.append(f"{path} is left over, because it could not be removed: {error}")
    return tuple(left)


def _deliver_disk(
    repository: Repository,
    record: PointRecord,
    item: DeliveredItem,
    settings: Settings,
    keys: RestoredKeys,
    stop: Callable[[], None],
    progress: Callable[[int], None],
) -> int:
    disk = next(disk for disk in record.disks if disk.target == item.name)
    staged = Path(item.staged)
    with file_errors(staged):
        remove_file(staged)  # of an attempt that was killed
    written = deliver_disk(
        repository,
        disk.stored,
        staged,
        item.format,
        key=keys.key(item.secret, item.name),
        workers=settings.workers,
        stop=stop,
        progress=progress,
    )
    with file_errors(staged):
        sync_directory(staged.parent)
    return written


def _deliver_small(repository: Repository, record: PointRecord, item: DeliveredItem, *, for_hypervisor: bool) -> int:
    staged = Path(item.staged)
    if item.role == "definition":
        content = record.definition.encode()
        stage_file(staged, content)
        return len(content)
    if item.role == "secret":
        content = secret_file(repository, record, item.name, item.format)
        stage_file(staged, content)
        return len(content)
    ref = next(state for state in record.states if state.kind == item.role)
    version, content = repository.state_of(record, ref.version_id)
    check_state(ref, content, record)
    if item.role == "tpm":
        stage_tpm(staged, ref.file, content, owner=swtpm_owner(version.owner) if for_hypervisor else None)
    else:
        # libvirt gives NVRAM its owner when the VM starts; it made the directory for itself.
        if for_hypervisor:
            make_folder(staged.parent, 0o755)
        stage_file(staged, content)
    return len(content)


def check_state(ref: StateRef, content: bytes, record: PointRecord) -> None:
    """Raise IntegrityError unless the content is that of the point, StateUnsupported when it leads to other files.

    A point holds no such variables; one that somebody forged would have QEMU open a file of this host.
    """
    if hashlib.sha256(content).hexdigest() != ref.sha256 or len(content) != ref.size_bytes:
        raise IntegrityError(
            f"the {ref.kind} state in the repository is not the one that point {record.id} was taken with",
            vm=record.vm_name,
        )
    if ref.kind == "nvram" and needs_another_file(content):
        raise StateUnsupported(
            f"the UEFI variables in point {record.id} are a qcow2 image that names another file of the host",
            vm=record.vm_name,
            hint="vmkeep keeps none like that: the point was made by something else. Restore its disks without them: "
            "--output DIR --only disks.",
        )


def item_at(role: str, name: str, final: Path, operation: str, image_format: str = "") -> DeliveredItem:
    """Return the item that ends up at ``final``; its staged name is the operation's own."""
    staged = final.with_name(f".{final.name}.{operation[:12]}.partial")
    kind = cast("Literal['disk', 'nvram', 'tpm', 'definition', 'secret']", role)
    return DeliveredItem(kind, name, str(staged), str(final), image_format)


def _aside(item: DeliveredItem) -> Path:
    return Path(item.staged).with_suffix(".replaced")


def _marker(item: DeliveredItem) -> Path:
    return Path(item.staged).with_suffix(".published")


def _refuse_existing(items: tuple[DeliveredItem, ...] | list[DeliveredItem], *, force: bool) -> None:
    existing = [item.final for item in items if os.path.lexists(item.final)]
    if existing and not force:
        raise TargetExists(f"{', '.join(existing)} exist{'s' if len(existing) == 1 else ''} already", path=existing[0])


def _refuse_shared_paths(items: list[DeliveredItem]) -> None:
    paths = [item.final for item in items]
    for path in paths:
        if paths.count(path) > 1:
            raise InvalidRequest(
                f"two parts of the VM would be restored to {path}", path=path, hint="Give --disks-dir DIR."
            )


def _absences(record: PointRecord) -> tuple[str, ...]:
    """Say what the point does not hold, so that nobody takes the restored VM for more than it is."""
    told = [
        f"Disk {disk.target} is not in the point ({disk.reason}), so the restored VM lacks it."
        for disk in record.excluded
        if disk.reason in (ExclusionReason.REQUESTED, ExclusionReason.SETTINGS)
    ]
    return (*told, *record.warnings)


def _tpm_choice(record: PointRecord, original: Definition, request: PrepareVm, owner: str | None, *, same: bool) -> str:
    """Return whose TPM the VM gets. There is no silent blank TPM, and no silent second owner of one.

    ``owner`` is the VM of the original's UUID on this host, whatever it is called by now.
    """
    if original.tpm is None or original.tpm.backend is not TpmBackend.EMULATOR:
        return "none"
    has_state = any(state.kind == "tpm" for state in record.states)
    if request.tpm == "same" and not has_state:
        raise StateUnsupported(f"point {record.id} holds no TPM state", vm=request.name)
    if request.tpm is not None:
        return request.tpm
    if same and has_state:
        return "same"
    if same:
        reason = f"point {record.id} holds no TPM state for the VM's TPM"
    elif owner is None:
        reason = f"VM {record.vm_name!r}, whose TPM this is, lives on another host, as the catalogue knows"
    elif owner == record.vm_name:
        reason = f"VM {owner!r}, whose TPM this is, exists"
    else:
        reason = f"VM {owner!r}, whose TPM this is, exists; when the point was taken it was called {record.vm_name!r}"
    raise ChoiceRequired(
        reason,
        vm=request.name,
        hint="--tpm same gives the restored VM a copy of the TPM (disks sealed to it open, and two VMs then share its "
        "identity); --tpm new gives it a blank one (sealed disks ask for their recovery key).",
    )
