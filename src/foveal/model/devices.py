"""The device that tensors live on."""

import torch

from foveal.errors import ConfigError

AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""What mixed precision of each name computes in; None where nothing is mixed."""


def choose_device(name: str = "auto") -> torch.device:
    """The device of that name; auto takes a GPU where there is one.

    Raises:
        ConfigError: the device is not there.
    """
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if present[kind]))
    if name not in present:
        raise ConfigError(f"--device {name}: expected auto, cpu, cuda or mps.")
    if not present[name]:
        at_hand = ", ".join(kind for kind, there in present.items() if there)
        raise ConfigError(f"--device {name}: there is none on this machine.", fix=f"choose one of: auto, {at_hand}.")
    return torch.device(name)
