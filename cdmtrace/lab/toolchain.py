"""What a kernel build needs on this machine."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass

from cdmtrace.errors import LabError, apt_hint


@dataclass(frozen=True, kw_only=True, slots=True)
class Tool:
    """A command or a C header, the Debian package that has it, and what for."""

    package: str
    command: str | None = None
    header: str | None = None

    @property
    def label(self) -> str:
        """Return how to call it in a message."""
        return self.command or f"<{self.header}>"


BUILD_TOOLS: tuple[Tool, ...] = (
    Tool(command="gcc", package="gcc"),
    Tool(command="ld", package="binutils"),
    Tool(command="make", package="make"),
    Tool(command="flex", package="flex"),
    Tool(command="bison", package="bison"),
    Tool(command="bc", package="bc"),
    Tool(command="perl", package="perl"),
    Tool(command="pahole", package="pahole"),
    Tool(command="tar", package="tar"),
    Tool(command="xz", package="xz-utils"),
    Tool(command="cpio", package="cpio"),
    Tool(command="patch", package="patch"),
    Tool(command="dpkg-deb", package="dpkg"),
    Tool(header="stdlib.h", package="libc6-dev"),
    Tool(header="gelf.h", package="libelf-dev"),
    Tool(header="openssl/opensslv.h", package="libssl-dev"),
)


def _has_header(header: str) -> bool:
    if shutil.which("gcc") is None:
        return True  # gcc itself is reported
    return (
        subprocess.run(
            ["gcc", "-E", "-x", "c", "-o", "/dev/null", "-"],
            input=f"#include <{header}>\n",
            text=True,
            capture_output=True,
            check=False,
        ).returncode
        == 0
    )


def missing_tools(tools: tuple[Tool, ...] = BUILD_TOOLS) -> list[Tool]:
    """Return those of ``tools`` that this machine lacks."""
    return [
        tool
        for tool in tools
        if (tool.command is not None and shutil.which(tool.command) is None)
        or (tool.header is not None and not _has_header(tool.header))
    ]


def require_tools(
    tools: tuple[Tool, ...] = BUILD_TOOLS, what: str = "a kernel"
) -> None:
    """Raise :class:`LabError` with the apt-get command if a tool is missing."""
    if missing := missing_tools(tools):
        packages = dict.fromkeys(tool.package for tool in missing)
        raise LabError(
            f"{what} cannot be built here without "
            + ", ".join(tool.label for tool in missing),
            hint=apt_hint(*packages),
        )


def compiler_version() -> str | None:
    """Return the versions of compiler and BTF encoder, or None without a compiler.

    All that can change the code or the type data of a kernel made from the same
    source and configuration.
    """
    if shutil.which("gcc") is None:
        return None
    lines = []
    for arguments in (
        ["gcc", "--version"],
        ["ld", "--version"],
        ["pahole", "--version"],
    ):
        if shutil.which(arguments[0]) is None:
            continue
        output = subprocess.run(
            arguments, text=True, capture_output=True, check=False
        ).stdout
        lines.append(output.splitlines()[0] if output else arguments[0])
    return "\n".join(lines)
