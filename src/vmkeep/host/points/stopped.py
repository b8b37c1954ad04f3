"""The disks of a VM that is off, exposed from its images: nothing is started, and nothing keeps the VM from starting.

New bitmaps come first, so that whatever is written afterwards is recorded in them. Then the images are read without
locks. When the VM is started meanwhile, or any of its files changes, what was read is given up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from vmkeep.commandline import command_line
from vmkeep.config import Settings
from vmkeep.errors import HostFileMissing, NoSpace, PermissionRefused, TransferError, VmBusy, VmkeepError, VmStarted
from vmkeep.host.checkpoints.bases import Bases
from vmkeep.host.checkpoints.changes import checkpoint_xml
from vmkeep.host.checkpoints.rebinding import no_bitmap
from vmkeep.host.guard.guardian import Guardian
from vmkeep.host.guard.rescue import JobRecord, MarkedImage, Stage, remove_leavings
from vmkeep.host.points.exposure import Subject, guarded
from vmkeep.host.points.instant import Instant
from vmkeep.host.vm.filetraits import Traits, traits_of
from vmkeep.host.vm.keys import secret_of
from vmkeep.host.vm.standstill import as_text
from vmkeep.host.vm.states import read_state
from vmkeep.hypervisor import RunState
from vmkeep.planning import DiskPlan, Mode, PointPlan, Reason
from vmkeep.statefiles.capture import CapturedState
from vmkeep.transfer.imagefile import add_bitmap, describe_image
from vmkeep.transfer.server import ImageServer
from vmkeep.transfer.source import DiskSource, LayeredSource

_LOOK_SECONDS = 0.3


class StoppedExposure:
    """The images of a VM that is off, and the proof that it stayed off."""

    def __init__(
        self,
        subject: Subject,
        settings: Settings,
        record: JobRecord,
        guardian: Guardian,
        plan: PointPlan,
        instant: Instant,
        warnings: tuple[str, ...],
    ) -> None:
        self._subject = subject
        self._settings = settings
        self._record = record
        self._guardian = guardian
        self._files = self._look()
        self.plan = plan
        self.instant = instant
        self.warnings = warnings

    @classmethod
    def open(cls, subject: Subject, settings: Settings, *, stop: Callable[[], None]) -> StoppedExposure:
        """Add the new bitmaps and read the state files; on failure nothing of it is left."""
        record = JobRecord(
            operation=subject.operation,
            uri=subject.uri,
            vm=subject.domain.name,
            uuid=subject.domain.uuid,
            checkpoint=subject.checkpoint,
            socket=str(subject.directory(settings) / "nbd"),
            directory=str(subject.directory(settings)),
            was_running=False,
            scratch=(),
            stopped=True,
            images=tuple(_marked_image(subject, target) for target in subject.marked),
        )
        guardian = guarded(subject, settings, record)
        try:
            stop()
            without = _mark(subject, record)
            # Afterwards, because a new bitmap for which there is no room takes the others of its image along.
            plan = _with_maps_proved(subject, Path(record.socket), set(without))
            created = datetime.now(UTC)
            states, warnings = _read_states(subject)
            warnings += tuple(no_bitmap(target, error) for target, error in without.items())
            exposure = cls(subject, settings, record, guardian, plan, Instant(as_text(created), states, 0.0), warnings)
            exposure.prove()
            guardian.stage(Stage.COPY)
        except BaseException:
            guardian.rescue_now()
            raise
        return exposure

    @contextmanager
    def source(self, planned: DiskPlan) -> Iterator[DiskSource]:
        with _served(self._subject, planned, Path(self._record.socket)) as source:
            yield source

    def watched(self, stop: Callable[[], None]) -> Callable[[], None]:
        last = 0.0

        def watch() -> None:
            nonlocal last
            stop()
            # A VM needs longer than this to start and stop again, so none can do so unseen.
            if time.monotonic() - last >= _LOOK_SECONDS:
                self._require_off()
                last = time.monotonic()

        return watch

    def prove(self) -> None:
        self._require_off()
        if self._look() != self._files:
            raise _started(self._subject)

    def explain(self, error: TransferError) -> VmkeepError:
        try:
            self.prove()
        except VmkeepError as cause:
            return cause
        return error

    def keep(self) -> None:
        self._guardian.stage(Stage.KEEP)

    def close(self) -> list[str]:
        """List the new checkpoint with libvirt and remove the older ones."""
        subject = self._subject
        warnings = []
        try:
            # The VM may run by now; then libvirt removes the older bitmaps itself.
            stopped = subject.domain.state().run is RunState.OFF
            marked = tuple(disk.target for disk in self.plan.disks if disk.bitmap)
            xml = checkpoint_xml(subject.definition, subject.checkpoint, marked, creation_time=int(time.time()))
            if xml is not None:
                subject.domain.redefine_checkpoint(xml)
            warnings += self._remove_older(stopped=stopped)
        except VmkeepError as error:
            warnings.append(f"The older checkpoints stay until the next point: {error}")
        remove_leavings(self._record)
        self._guardian.done()
        return warnings

    def abandon(self) -> None:
        self._guardian.rescue_now()

    def _remove_older(self, *, stopped: bool) -> list[str]:
        subject = self._subject
        chains = {
            target: describe_image(chain[0].path, chain[0].format, chain=False)
            for target, chain in subject.chains.items()
        }
        bases = Bases(
            subject.domain,
            subject.definition,
            chains,
            stopped=stopped,
            prefix=subject.prefix,
            points=(),
            key=subject.key,
        )
        return bases.remove_older({subject.checkpoint, *subject.kept})

    def _require_off(self) -> None:
        if self._subject.domain.state().run is not RunState.OFF:
            raise _started(self._subject)

    def _look(self) -> dict[str, Traits]:
        """Return what changes when anybody writes to the VM's files; a device tells nothing but that it is there."""
        paths = [layer.path for chain in self._subject.chains.values() for layer in chain]
        paths += [layer.data_file for chain in self._subject.chains.values() for layer in chain if layer.data_file]
        paths += [str(source.path) for source in self._subject.states]
        return {path: traits_of(Path(path)) for path in paths}


def _started(subject: Subject) -> VmStarted:
    return VmStarted(
        "the VM was started, or its files were changed, while its point was copied", vm=subject.domain.name
    )


def _marked_image(subject: Subject, target: str) -> MarkedImage:
    top = subject.chains[target][0]
    disk = subject.definition.disk(target)
    assert disk is not None
    return MarkedImage(target, top.path, top.format, secret_of(disk))


@contextmanager
def _served(subject: Subject, planned: DiskPlan, socket: Path) -> Iterator[DiskSource]:
    """Serve a disk's image, and for their bitmaps the images below that have one of the base too.

    qemu-nbd exports the bitmap of one image. Overlays begin with an empty one of the same name, so the changes since
    the base are those of all of them.
    """
    disk = subject.definition.disk(planned.target)
    assert disk is not None
    assert disk.source is not None
    key = subject.key(planned.target)
    name = planned.base_checkpoint
    with ExitStack() as servers:
        top = ImageServer(disk.source, disk.image_format, socket, bitmap=name, key=key)
        source = servers.enter_context(top).source()
        below = []
        for number, layer in enumerate(subject.chains.get(planned.target, ())[1:]):
            if name is not None and layer.bitmap(name) is not None:
                beside = socket.with_name(f"{socket.name}-{number}")
                server = ImageServer(layer.path, layer.format, beside, bitmap=name)
                below.append(servers.enter_context(server).source())
        yield LayeredSource(source, below) if below else source


def _mark(subject: Subject, record: JobRecord) -> dict[str, VmkeepError]:
    """Add the new bitmaps; return for which disks that failed, and why. Their next point reads them whole."""
    without: dict[str, VmkeepError] = {}
    for image in record.images:
        try:
            add_bitmap(image.path, image.format, record.checkpoint, subject.key(image.target))
        except VmBusy as error:
            if subject.domain.state().run is RunState.OFF:
                raise  # another program has the image open
            raise _started(subject) from error
        except (TransferError, NoSpace, PermissionRefused) as error:
            without[image.target] = error
    return without


def _with_maps_proved(subject: Subject, socket: Path, without: Collection[str]) -> PointPlan:
    """Return the plan with every disk read whole whose bitmap QEMU does not load after all.

    ``without`` are the disks that get no new bitmap.

    A bitmap whose directory entry is sound can still not fit its disk; nothing but loading it tells.
    """
    disks = []
    for planned in subject.plan.disks:
        if planned.mode is Mode.INCREMENTAL:
            try:
                with _served(subject, planned, socket) as source:
                    for _range in source.dirty_map():
                        pass
            except TransferError as error:
                planned = replace(
                    planned,
                    mode=Mode.FULL,
                    reason=Reason.BITMAP_UNFITTING,
                    detail=f"QEMU does not load the bitmap: {error.message}",
                    base_point=None,
                    base_checkpoint=None,
                )
        disks.append(replace(planned, bitmap=planned.bitmap and planned.target not in without))
    return replace(subject.plan, disks=tuple(disks))


def _read_states(subject: Subject) -> tuple[tuple[CapturedState, ...], tuple[str, ...]]:
    """Read the state files that are there: a VM that was never started has none yet, another one has lost them."""
    states, warnings = [], []
    name = subject.domain.name
    for source in subject.states:
        try:
            states.append(read_state(source, name))
        except HostFileMissing:
            what = "TPM state file" if source.kind == "tpm" else "file of UEFI variables"
            if source.kind in subject.known_states:
                warnings.append(
                    f"The {what} of {name} is gone ({source.path}), though earlier points have it. This point is "
                    f"without; starting the VM would make a blank one. `{command_line('vmkeep state restore', name)}` "
                    "puts the one that was kept last back."
                )
            else:
                warnings.append(f"{name} has no {what} yet: it was never started. A restored VM begins with a new one.")
    return tuple(states), tuple(warnings)
