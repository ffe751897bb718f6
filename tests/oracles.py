"""Reference results for fast code: plain float64 NumPy loops that a reader can check by eye."""

import numpy as np


def log_weights(y, points, sigma):
    """log softmax_j(-||y - x_j||^2 / (2 sigma^2)), [Q, d], [N, d] -> [Q, N]."""
    y, points = np.float64(y), np.float64(points)
    rows = []
    for query, level in zip(y, np.broadcast_to(np.float64(sigma), len(y)), strict=True):
        logits = -((query - points) ** 2).sum(axis=1) / (2 * level**2)
        logits -= logits.max()
        rows.append(logits - np.log(np.exp(logits).sum()))
    return np.array(rows)


def denoise(y, points, sigma):
    """sum_j w_j x_j, [Q, d]."""
    return np.exp(log_weights(y, points, sigma)) @ np.float64(points)


def squared_distances(x, points):
    """||x_i - p_j||^2, [Q, N]."""
    return np.array([((row - np.float64(points)) ** 2).sum(axis=1) for row in np.float64(x)])


def two_nearest(queries, points):
    """Return the distances and indices [Q, 2] of the two nearest points, ties by index."""
    squares = squared_distances(queries, points)
    index = np.argsort(squares, axis=1, kind="stable")[:, :2]
    return np.sqrt(np.take_along_axis(squares, index, 1)), index


def covered(y, points, sigma, r_in, r_out):
    """Return whether sigma r_in <= ||y - x_i|| <= sigma r_out for at least one i, [Q]."""
    radius = np.sqrt(squared_distances(y, points)) / sigma
    return ((r_in <= radius) & (radius <= r_out)).any(axis=1)


def memorized(queries, points, threshold):
    """(indices [Q, 2] of the two nearest points, whether d1 < threshold d2 [Q])."""
    distance, index = two_nearest(queries, points)
    return index, distance[:, 0] < threshold * distance[:, 1]
