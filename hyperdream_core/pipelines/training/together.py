"""The processes of one training: they share out its rows, add up their gradients, and stop all or none.

Accelerate says who they are and carries the numbers. Before a gradient is used every process tells all others how it
fared; so an error, or somebody's Ctrl-C, in one of them ends all of them before the same step, with the same sentence.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ConfigError, HyperDreamError

_PLAIN = ("NO", "MULTI_CPU", "MULTI_GPU", "MULTI_NPU", "MULTI_XPU", "MULTI_MLU", "MULTI_MUSA", "MULTI_HPU")
"""Ways of being many in which every process has the whole network."""


class StoppedWithAnother(HyperDreamError):
    """Another process of the same training has failed; the text is its own."""


class Team:
    """This process and the others."""

    def __init__(self, device: torch.device | str, precision: str) -> None:
        """Args:
        device: where this process computes.
        precision: "fp32", "bf16" or "fp16".

        Raises:
            ConfigError: the device has no numbers of that precision, or Accelerate was asked to split the network.
        """
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState

        kind = torch.device(device).type
        if precision == "fp16" and kind == "cpu":
            raise ConfigError("precision fp16 needs a GPU; use bf16 or fp32 on a CPU")
        # What one training was asked for is kept for the next one of this process, and would be refused there.
        AcceleratorState._reset_state()
        self.accelerator = Accelerator(cpu=kind == "cpu", mixed_precision="no" if precision == "fp32" else precision)
        how = self.accelerator.distributed_type
        if str(how).rsplit(".", 1)[-1] not in _PLAIN:
            raise ConfigError(
                f"Accelerate was asked for {how}, which splits a network over processes; a predictor fits each of "
                "them. Use `accelerate launch --multi_gpu`, or --processes"
            )
        self.size, self.index = self.accelerator.num_processes, self.accelerator.process_index
        self.is_main = bool(self.accelerator.is_main_process)
        self.has_agreed_to_stop = False

    def share_of(self, rows: int) -> range:
        """The rows of a step that are this process's."""
        return range(rows * self.index // self.size, rows * (self.index + 1) // self.size)

    def agree(self, problem: BaseException | None, loss: float) -> float:
        """Go on together, with the sum of all losses, or stop together.

        Raises:
            BaseException: this process's own problem.
            KeyboardInterrupt: another one was stopped.
            StoppedWithAnother: another one has failed.
        """
        if self.size == 1:
            if problem is not None:
                raise problem
            return loss
        state = 0.0 if problem is None else 1.0 if isinstance(problem, Exception) else 2.0
        told = self._gathered(torch.tensor([[state, loss]], dtype=torch.float64))
        if not bool(told[:, 0].any()):
            return float(told[:, 1].sum())
        from accelerate.utils import gather_object

        self.has_agreed_to_stop = True
        said = gather_object([str(problem or "").strip() or type(problem).__name__])
        if problem is not None:
            raise problem
        failed = (told[:, 0] == 1.0).nonzero().flatten().tolist()
        if not failed:
            raise KeyboardInterrupt
        raise StoppedWithAnother(f"process {failed[0] + 1} of {self.size} has failed: {said[failed[0]]}")

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by the sum over all processes; where none was computed there is none, or zero."""
        if self.size == 1:
            return
        trained = list(parameters)
        for parameter in trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        # One message: a network has hundreds of tensors, most of them small.
        flat = torch.cat([p.grad.reshape(-1) for p in trained if p.grad is not None])
        flat = self.accelerator.reduce(flat, "sum")
        parts = flat.split([p.numel() for p in trained])
        for parameter, part in zip(trained, parts, strict=True):
            # Into the one that is there, which is laid out in memory as the parameter is (channels last).
            assert parameter.grad is not None
            parameter.grad.copy_(part.view_as(parameter))

    @torch.no_grad()
    def copy_from_main(self, tensors: Iterable[Tensor]) -> None:
        """Begin with what the main process has, in every process."""
        if self.size > 1:
            from accelerate.utils import broadcast

            for tensor in tensors:
                tensor.copy_(broadcast(tensor.detach().clone(), from_process=0))

    def wait(self) -> None:
        """Wait for all others."""
        self.accelerator.wait_for_everyone()

    def _gathered(self, values: Tensor) -> Tensor:
        found: Any = self.accelerator.gather(values.to(self.accelerator.device))
        return torch.as_tensor(found).cpu()
