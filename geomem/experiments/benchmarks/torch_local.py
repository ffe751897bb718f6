"""The equivariant local score in PyTorch, as one would write it: the baseline of the benchmark."""

import numpy as np
import torch

__all__ = ["els"]

_IMAGES = 4  # training images whose patches are compared at once


def els(y: np.ndarray, images: np.ndarray, sigma: float, side: int) -> np.ndarray:
    """Return the ELS estimate of y [Q, H, W, C] from images [N, H, W, C], float32.

    One matrix product for the patches of a few images, and a softmax with a running maximum.
    """
    queries, shape = _patches(_channels_first(y), side), y.shape
    peak = torch.full((len(queries), 1), -torch.inf)
    total, moment = torch.zeros(len(queries), 1), torch.zeros(len(queries), shape[3])
    norms = (queries**2).sum(dim=1, keepdim=True)
    with torch.no_grad():
        for block in _channels_first(images).split(_IMAGES):
            keys = _patches(block, side)
            centers = block.permute(0, 2, 3, 1).reshape(-1, shape[3])
            squared = norms + (keys**2).sum(dim=1) - 2 * queries @ keys.T
            logits = squared / (-2 * sigma**2)
            new_peak = torch.maximum(peak, logits.max(dim=1, keepdim=True).values)
            weights, scale = torch.exp(logits - new_peak), torch.exp(peak - new_peak)
            total = scale * total + weights.sum(dim=1, keepdim=True)
            moment, peak = scale * moment + weights @ centers, new_peak
    return (moment / total).numpy().reshape(shape)


def _channels_first(images):
    return torch.tensor(np.moveaxis(images, -1, 1).copy())


def _patches(images, side):
    """The patch around each pixel, [N H W, side side C], padded with zeros."""
    unfolded = torch.nn.functional.unfold(images, side, padding=side // 2)
    return unfolded.transpose(1, 2).reshape(-1, unfolded.shape[1])
