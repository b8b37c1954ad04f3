"""Restore a point to files: disk images, NVRAM, TPM directory and definition, without a hypervisor."""

from __future__ import annotations

from typing import Any

from vmkeep.flows.plan import AfterCrash, Plan, flow
from vmkeep.flows.requests import FilesRestored, RestoreFiles
from vmkeep.host.tasks.restores import (
    DeliveredItem,
    DeliverItems,
    DiscardReplaced,
    FilesPrepared,
    ItemsDelivered,
    PrepareFiles,
    PublishItems,
    WithdrawItems,
)


@flow("restore.files", after_crash=AfterCrash.FINISH, undos_alone=True)
def restore_files(plan: Plan, request: RestoreFiles) -> FilesRestored:
    """Write everything beside its place, then rename; all of it appears, or none."""
    prepared = plan.step(prepare, plan, request, undo=lambda prepared: remove_directory(plan, prepared))
    items = prepared.items
    delivered = plan.step(deliver, plan, request, items, undo=lambda _: withdraw(plan, items))
    plan.step(publish, plan, items, request.force)
    left = plan.step(discard_replaced, plan, items)
    return FilesRestored(
        point=request.point,
        output=request.output,
        files=tuple(item.final for item in items),
        bytes_written=delivered.bytes_written,
        warnings=(*prepared.warnings, *left),
    )


def prepare(plan: Plan, request: RestoreFiles) -> FilesPrepared:
    """Choose the paths; nothing is written when one of them is taken."""
    task = PrepareFiles(
        operation=plan.operation,
        point_id=request.point,
        output=request.output,
        image_format=str(request.image_format),
        force=request.force,
        secrets=request.secrets,
        decrypt=request.decrypt,
        only=request.only,
    )
    return plan.services.on_host(plan.operation, task)


def deliver(plan: Plan, request: RestoreFiles, items: tuple[DeliveredItem, ...]) -> ItemsDelivered:
    """Write disks and state files beside their places."""
    return plan.services.on_host(plan.operation, DeliverItems(request.point, items, for_hypervisor=False))


def publish(plan: Plan, items: tuple[DeliveredItem, ...], force: bool) -> None:
    """Rename into place."""
    plan.services.on_host(plan.operation, PublishItems(items, force))


def discard_replaced(plan: Plan, items: tuple[DeliveredItem, ...]) -> tuple[str, ...]:
    """Remove what --force replaced; from here on nothing is undone."""
    return plan.services.on_host(plan.operation, DiscardReplaced(items))


def remove_directory(plan: Plan, prepared: FilesPrepared) -> Any:
    """Undo ``prepare``: a directory that was made for the files goes when nothing is in it."""
    return plan.services.on_host(plan.operation, WithdrawItems((), prepared.directory))


def withdraw(plan: Plan, items: tuple[DeliveredItem, ...]) -> Any:
    """Undo ``deliver`` and ``publish``."""
    return plan.services.on_host(plan.operation, WithdrawItems(items))
