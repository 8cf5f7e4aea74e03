"""The laboratory: kernels, quirks and scenarios, run in QEMU guests."""
