"""The laboratory's kernels, wherever they are from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cdmtrace.lab import kernel, packaged
from cdmtrace.lab.kernel import Kernel, Progress, Quiet
from cdmtrace.lab.specs import PackagedSpec

if TYPE_CHECKING:
    from cdmtrace.lab.paths import Layout
    from cdmtrace.lab.specs import Spec


def find(spec: Spec, layout: Layout) -> Kernel | None:
    """Return the kernel if it is at hand. Asks neither apt nor the network."""
    if isinstance(spec, PackagedSpec):
        return packaged.find(spec, layout)
    return kernel.find_built(spec, layout)


def provide(
    spec: Spec,
    layout: Layout,
    *,
    jobs: int | None = None,
    update: bool = False,
    progress: Progress | None = None,
) -> Kernel:
    """Return the kernel, built or fetched if need be. Raises :class:`LabError`.

    jobs: make's -j (default: the CPUs that this process may use). update: refresh the
    package lists first, and take what is newest.
    """
    if isinstance(spec, PackagedSpec):
        return packaged.fetch(spec, layout, update=update, progress=progress or Quiet())
    return kernel.build(spec, layout, jobs=jobs, update=update, progress=progress)
