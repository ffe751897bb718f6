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


def denoise_by(y, points, sigma, values):
    """sum_j w_j v_j with the weights of points x_j and values v_j [N, C], [Q, C]."""
    return np.exp(log_weights(y, points, sigma)) @ np.float64(values)


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


def two_nearest_groups(queries, points, group):
    """Distances [Q, 2] to the nearest point, and to the nearest one of another group."""
    distances = np.sqrt(squared_distances(queries, points))
    first = distances.argmin(axis=1)
    second = [row[group != group[i]].min() for row, i in zip(distances, first, strict=True)]
    return np.stack([distances.min(axis=1), second], axis=1)


def local_score(y, images, sigma, side, everywhere=False, same_border=False):
    """The LS or (everywhere) ELS estimate, one pixel at a time; [Q, H, W, C], [N, H, W, C]."""
    y, images, half = np.float64(y), np.float64(images), side // 2
    height, width = y.shape[1:3]
    pad = ((0, 0), (half, half), (half, half), (0, 0))
    padded_y, padded = np.pad(y, pad), np.pad(images, pad)
    patches = {
        (r, c): padded[:, r : r + side, c : c + side].reshape(len(images), -1)
        for r in range(height)
        for c in range(width)
    }

    def border(r, c):
        return [max(0, half - k) for k in (r, height - 1 - r, c, width - 1 - c)]

    result = np.zeros_like(y)
    for q, level in enumerate(np.broadcast_to(np.float64(sigma), len(y))):
        for r, c in patches:
            patch = padded_y[q, r : r + side, c : c + side].reshape(-1)
            places = list(patches) if everywhere else [(r, c)]
            if same_border:
                places = [place for place in places if border(*place) == border(r, c)]
            candidates = np.concatenate([patches[place] for place in places])
            centers = np.concatenate([images[:, i, j] for i, j in places])
            logits = -((patch - candidates) ** 2).sum(axis=1) / (2 * level**2)
            weights = np.exp(logits - logits.max())
            result[q, r, c] = weights @ centers / weights.sum()
    return result
