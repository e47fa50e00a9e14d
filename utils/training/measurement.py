"""What is measured of a training step from outside, so that the steps themselves say nothing but the method."""

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

MODULES = {"fusion": "fusion_module", "audio": "audio_net", "visual": "visual_net"}
BRANCHES = ("fused", "audio", "visual")

# What is measured of a step, (3, 3), and its names in the log: losses, right answers, gradient magnitudes.
LOSSES = ("loss", "loss_a", "loss_v")
HITS = tuple(f"train_{branch}" for branch in BRANCHES)
GRADIENTS = tuple(f"gradient_{module}" for module in MODULES)


def named(measured):
    """Figures (3, 3) by their names in the log; None for NaN, which the model lacks or nobody measured."""
    values = (None if value != value else value for value in measured.flatten().tolist())
    return dict(zip((*LOSSES, *HITS, *GRADIENTS), values, strict=True))


class WatchedLosses(TorchFunctionMode):
    """A context that keeps the cross-entropies computed in it, in their order, with their logits and labels.

    A training step returns the very losses that it computed, detached; `find` says which of them each one was.

    Args:
        weights: a factor for each cross-entropy in its turn, to see where its gradient goes; None for 1.
    """

    def __init__(self, weights=None):
        super().__init__()
        self.weights, self.seen = weights, []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function is F.cross_entropy:
            if self.weights is not None:
                result = self.weights[len(self.seen)] * result
            self.seen.append((result.detach(), *(tensor.detach() for tensor in args)))
        return result

    def find(self, losses):
        """For each loss of a step its number among the cross-entropies, None for one that is none of them."""
        numbers = {loss.data_ptr(): number for number, (loss, _, _) in enumerate(self.seen)}  # detached: same storage
        return [numbers.get(loss.data_ptr()) for loss in losses]

    def hits(self, losses):
        """For each loss of a step the clips whose top class is right: (3,) on its device, NaN where there is none."""
        hits = []
        for loss, number in zip(losses, self.find(losses), strict=True):
            if number is None:
                hits.append(torch.full_like(loss, float("nan")))
            else:
                _, logits, label = self.seen[number]
                hits.append((logits.argmax(dim=1) == label).sum(dtype=loss.dtype))
        return torch.stack(hits)


def gradient_norms(model):
    """L2 norms of what `.grad` holds in the fusion module, audio and visual encoder: (3,) on the model's device.

    NaN for an encoder that the model lacks. The host does not wait for it.
    """
    device = next(model.parameters()).device
    norms = []
    for name in MODULES.values():
        if hasattr(model, name):
            gradients = [p.grad for p in getattr(model, name).parameters() if p.grad is not None]
            norms.append(torch.nn.utils.get_total_norm(gradients).to(device))
        else:
            norms.append(torch.full((), float("nan"), device=device))
    return torch.stack(norms)


def read_later(values):
    """Begin to bring a tensor (N,) to the host. The function returned waits for it and gives its numbers, a list.

    Asked for after the next step is under way, it leaves a GPU no time without work.
    """
    copy = values.to("cpu", non_blocking=values.is_cuda)
    arrival = torch.cuda.current_stream(values.device).record_event() if values.is_cuda else None

    def read():
        if arrival:
            arrival.synchronize()
        return copy.tolist()

    return read
