"""Several processes as one: who is who, sums and means over all of them, and work that only the first one does.

Without torch.distributed, or before it is initialised, there is one process and everything here is the identity. When
a process is lost, the others get a PeerError where they wait for it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import fields, is_dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from torch import Tensor, nn

    from align3d.types import Method

T = TypeVar("T")
TIMEOUT = 240.0  # minutes to wait for living processes: the first one's pictures and evaluations may take long
TOTALS = {"evaluations": sum, "dead": sum, "seconds": max, "memory_mib": max}  # any other number is a mean


class PeerError(RuntimeError):
    """Another process failed, or cannot be reached; if it failed, its own error says why."""


def start(environ: Mapping[str, str], store: dist.Store, cpu: bool = False) -> None:
    """Join the other processes.

    Args:
        environ: The environment, with torchrun's RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE; and, if wished,
            ALIGN3D_TIMEOUT, minutes to wait for a process that lives but does not come.
        store: Where all processes write and read.
        cpu: Whether the model will be on the CPU, even if there are GPUs.

    Raises:
        ValueError: If a number is none, or there are too few GPUs.
    """
    minutes = patience(environ.get("ALIGN3D_TIMEOUT") or str(TIMEOUT))
    if not cpu and torch.cuda.is_available():
        torch.cuda.set_device(choose_gpu(environ, torch.cuda.device_count()))
    # No backend named: gloo for tensors on the CPU, NCCL for those on a GPU.
    dist.init_process_group(
        store=dist.PrefixStore("sums", store),
        rank=int(environ["RANK"]),
        world_size=int(environ["WORLD_SIZE"]),
        timeout=timedelta(minutes=minutes),
    )


def patience(text: str) -> float:
    """A number of minutes, up to 694 days.

    Raises:
        ValueError: If it is none.
    """
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not 0 < minutes < 1e6:
        raise ValueError(f"ALIGN3D_TIMEOUT must be a number of minutes, above 0, got {text!r}")
    return minutes


def choose_gpu(environ: Mapping[str, str], count: int) -> int:
    """The number of this process's GPU: one for each process of this machine.

    Args:
        environ: The environment, with LOCAL_RANK and, if known, LOCAL_WORLD_SIZE.
        count: GPUs that this process sees.

    Raises:
        ValueError: If there are fewer GPUs than processes.
    """
    local = int(environ["LOCAL_RANK"])
    size = max(int(environ.get("LOCAL_WORLD_SIZE", "1")), local + 1)
    if count < size:
        raise ValueError(
            f"{size} processes on this machine, but {count} GPU{'s' if count > 1 else ''}, and each needs its own; "
            f"start at most {count}, or use --device cpu"
        )
    return local


def stop(failed: bool = False) -> bool:
    """Part from the other processes; those that still wait for this one on a CPU get a PeerError.

    Args:
        failed: Whether some process may not come to this point.

    Returns:
        Whether that was possible: GPUs that wait for each other would keep a process that waits for them.
    """
    if dist.is_initialized():
        if failed and torch.cuda.is_initialized():
            return False
        dist.destroy_process_group()
    return True


@contextlib.contextmanager
def reaching() -> Iterator[None]:
    """Within, an error of torch.distributed is a PeerError of one line."""
    try:
        yield
    except RuntimeError as error:
        reason = " ".join(str(error).split(" This is typically")[0].split())
        raise PeerError(f"lost touch with the other processes: {reason}") from error


def active() -> bool:
    """Whether there are other processes."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if active() else 0


def world() -> int:
    """The number of processes."""
    return dist.get_world_size() if active() else 1


def average(values: Tensor) -> Tensor:
    """The mean of a tensor over the processes; the same tensor where there is one. No gradient."""
    if not active():
        return values
    total = values.detach().clone()
    with reaching():
        dist.all_reduce(total)
    return total / world()


def gather(value: Any) -> list[Any]:
    """What each process gives, by rank; for small values that JSON can hold."""
    if not active():
        return [value]
    data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(world())]
    with reaching():
        dist.all_gather(sizes, torch.tensor([data.numel()]))
        longest = int(max(sizes))
        parts = [torch.zeros(longest, dtype=torch.uint8) for _ in sizes]
        dist.all_gather(parts, torch.cat([data, data.new_zeros(longest - data.numel())]))
    return [json.loads(bytes(part[: int(size)].tolist()).decode()) for part, size in zip(parts, sizes, strict=True)]


def average_numbers(numbers: dict[str, float]) -> dict[str, float]:
    """The means over the processes that have the number and for which it is not NaN; for some, what TOTALS says."""
    if not active():
        return numbers
    each = gather(numbers)
    names = list(dict.fromkeys(name for one in each for name in one))
    found: dict[str, float] = {}
    for name in names:
        values = [one[name] for one in each if name in one]
        good = [value for value in values if value == value]
        found[name] = TOTALS.get(name, mean)(good or values)
    return found


def joined(lists: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Lists of the same names, those of all processes one after the other, by rank."""
    if not lists or not active():
        return lists
    each = gather(lists)
    return {name: [entry for one in each for entry in one[name]] for name in lists}


def mean(values: list[float]) -> float:
    """Their sum by their number."""
    return sum(values) / len(values)


def anyone(flag: bool) -> bool:
    """Whether the flag is set in any process."""
    return bool(average(torch.tensor(float(flag))) > 0)


def largest(value: int) -> int:
    """The largest of the processes' numbers."""
    return max(gather(value))


def require_same(value: Any, problem: str) -> None:
    """Check that all processes have the same value, of those that JSON can hold.

    Raises:
        ValueError: `problem`, in all of them, if not.
    """
    digest = hashlib.blake2b(json.dumps(value, sort_keys=True).encode()).hexdigest()
    if len(set(gather(digest))) > 1:
        raise ValueError(problem)


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each .grad by its mean over the processes, with one message.

    A parameter that got no gradient counts as zero, unless it got none anywhere: then it keeps none, and the optimiser
    leaves it alone as it would in one process.
    """
    if not active():
        return
    parameters = list(parameters)
    seen = torch.tensor([float(p.grad is not None) for p in parameters])
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    wide = [g.flatten().to(torch.promote_types(g.dtype, torch.float32)) for g in grads]
    flat = average(torch.cat([*wide, seen.to(grads[0].device)]))
    seen = flat[-len(parameters) :].tolist()
    means = flat[: -len(parameters)].split([g.numel() for g in grads])
    for parameter, grad, part, present in zip(parameters, grads, means, seen, strict=True):
        parameter.grad = part.view_as(grad).to(grad.dtype) if present else None


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Overwrite each tensor by the first process's, so that all start from the same numbers."""
    if active():
        with reaching():
            for tensor in tensors:
                dist.broadcast(tensor.detach(), 0)


def agree(method: Method, like: Tensor) -> Method:
    """The method with the first process's numbers: on a GPU, sums may differ in their last bits from run to run."""
    if not active() or not is_dataclass(method):
        return method
    names = [field.name for field in fields(method) if isinstance(getattr(method, field.name), float)]
    numbers = torch.tensor([getattr(method, name) for name in names], dtype=torch.float64, device=like.device)
    broadcast([numbers])
    return replace(method, **dict(zip(names, numbers.tolist(), strict=True)))


def on_first(action: Callable[[], T]) -> T | None:
    """Do something in the first process while the others wait.

    Returns:
        What `action` returned, in the first process; None in the others.

    Raises:
        PeerError: In the others, if it failed in the first, which raises its own error.
    """
    if not active():
        return action()
    result, error = None, None
    if rank() == 0:
        try:
            result = action()
        except Exception as caught:  # the others must hear of it before it goes on
            error = caught
    if anyone(error is not None):
        raise error or PeerError("process 0 stopped; its message says why")
    return result
