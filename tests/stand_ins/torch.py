"""PyTorch on a machine with two GPUs, as far as the examples ask."""

from types import SimpleNamespace

used: list[int] = []
cuda = SimpleNamespace(is_available=lambda: True, device_count=lambda: 2, set_device=used.append)
