"""Membership inference from the denoising error: does it separate training from held-out images?"""

from typing import NamedTuple, cast

import numpy as np

from geomem.metrics.denoising import Errors, PerLevel

__all__ = ["AUC", "membership_auc"]

_CONFIDENCE = 0.95


class AUC(NamedTuple):
    """Probability that a training image has a smaller error than a held-out one; ties count half.

    Attributes:
      auc: area under the ROC curve; 1/2 if the errors carry no information about membership.
      low, high: 95% interval.
    """

    sigma: PerLevel
    auc: PerLevel
    low: PerLevel
    high: PerLevel


def membership_auc(train_errors: Errors, heldout_errors: Errors) -> AUC:
    """Return how well the denoising error separates training from held-out images at each level.

    The area under the ROC curve is the Mann-Whitney statistic; ties count half. Its interval is
    Newcombe's score interval (2006, method 5), which does not collapse at 0 and 1.

    Args:
      train_errors, heldout_errors: `denoising_error` on both sets, from different keys.

    Raises:
      ValueError: if the noise levels differ.
    """
    from scipy.stats import rankdata

    if not np.array_equal(train_errors.sigma, heldout_errors.sigma):
        raise ValueError("heldout_errors must have the noise levels of train_errors.")
    train, heldout = (
        np.asarray(errors.per_image, np.float64) for errors in (train_errors, heldout_errors)
    )
    m, n = train.shape[1], heldout.shape[1]
    ranks = rankdata(np.concatenate([train, heldout], axis=1), axis=1)
    auc = (ranks[:, m:].sum(axis=1) - n * (n + 1) / 2) / (m * n)
    low, high = np.transpose([_auc_interval(value, m, n) for value in auc])
    return AUC(train_errors.sigma, auc, low, high)


def _auc_interval(auc, m, n):
    """The interval of values within a normal quantile of `auc`, by their Hanley-McNeil variance."""
    from scipy.optimize import brentq
    from scipy.stats import norm

    def beyond(value):
        spread = (1 - value) / (2 - value) + value / (1 + value)
        variance = value * (1 - value) * (1 + ((m + n) / 2 - 1) * spread) / (m * n)
        return abs(auc - value) - norm.ppf((1 + _CONFIDENCE) / 2) * np.sqrt(variance)

    # If `auc` is 0 or 1, it is itself a root.
    low = brentq(beyond, 0, auc - 1e-9) if auc > 0 else 0.0
    high = brentq(beyond, auc + 1e-9, 1) if auc < 1 else 1.0
    return cast(float, low), cast(float, high)
