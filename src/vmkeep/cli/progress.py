"""The progress bar on a terminal: stage, disk, amount, rate and time left."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    DownloadColumn,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as Bars

from vmkeep.cli.terminal import one_line
from vmkeep.host.tasks.survey import Progress
from vmkeep.rates import limits_of_process


class _Measured(ProgressColumn):
    """A column that shows nothing before there is an amount: "0/? bytes ?" tells nobody anything."""

    def __init__(self, column: ProgressColumn) -> None:
        super().__init__()
        self._column = column

    def render(self, task: Task) -> RenderableType:
        return self._column(task) if task.total or task.completed else ""


@contextlib.contextmanager
def progress_bar(console: Console) -> Iterator[Callable[[Progress], None]]:
    """Show a bar that goes when the operation ends; what is yielded takes each report, from any thread."""
    bars = Bars(
        TextColumn("{task.description}", markup=False),
        *(_Measured(column) for column in (BarColumn(), DownloadColumn(binary_units=True))),
        *(_Measured(column) for column in (TransferSpeedColumn(), TimeRemainingColumn())),
        TextColumn(limits_of_process().text, markup=False),
        console=console,
        transient=True,
    )
    with bars:
        task = bars.add_task("starting", total=None)
        stage = ""

        def watch(report: Progress) -> None:
            nonlocal stage
            if report.stage != stage:
                # The rate of one stage says nothing about the next.
                stage = report.stage
                bars.reset(task)
            what = f"{report.stage} {report.disk}" if report.disk else report.stage
            bars.update(task, description=one_line(what), completed=report.done_bytes, total=report.total_bytes or None)

        yield watch
