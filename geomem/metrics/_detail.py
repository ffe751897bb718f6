"""Whether two images agree in their details as well: the confirmation of a copy.

Two coins on one cloth, or two places of one wall, have the same coarse picture. Their details
differ. So a pair is confirmed if, once its shift and its size along each axis are refined by
fractions of a pixel, the correlation of all frequencies of a window is at least 0.85. Each
frequency counts by its typical size plus noise of 0.1 standard deviations of the data. Noise and
compression destroy details. So a pair is confirmed too if the coarse pictures differ by no more
than such noise, 0.06 standard deviations of the data, and by less than 0.3 of their own contrast.

The limits were chosen on crops of photographs; see experiments/evaluate/README.md.
"""

from __future__ import annotations

import numpy as np
import scipy.optimize

from geomem.data import to_float
from geomem.metrics._reduction import reduced
from geomem.metrics._texture import FREQUENCIES, cosines
from geomem.metrics.alignment import Transform

__all__ = ["Details"]

_SIDE = 64  # larger images are reduced until their shorter side is this long
_EXAMPLES = 2048  # images from which the typical sizes are estimated
_AGREEMENT = 0.85
_NOISE = 0.1  # tolerated in the correlation, in standard deviations of the data
_DIFFERENCE, _RELATIVE = 0.06, 0.3  # of coarse pictures: by the data's deviation, by the contrast
_STEP = 0.05  # first change of the size
_EVALUATIONS = 120  # of the correlation, at most


class Details:
    """The details of a data set.

    Args:
      images: [N, H, W, C], as stored; vectors [N, d] have no details.
      chosen: positions in `images` of those that are compared.
      coarse: shorter side of the coarse pictures of larger images.
    """

    def __init__(self, images: np.ndarray, chosen: np.ndarray, coarse: int):
        self._images, self._chosen, self._weight = images, chosen, None
        if images.ndim == 2:
            return
        examples = chosen[:: -(-len(chosen) // _EXAMPLES)]
        examples = to_float(reduced(images, examples, _SIDE)).mean(axis=3, dtype=np.float64)
        self._shape = examples.shape[1:]
        least = min(self._shape)
        self._margin, self._unit = least // 8, least / min(least, coarse)
        if least - 2 * self._margin <= FREQUENCIES:
            return
        power = np.mean([self._texture(image) ** 2 for image in examples], axis=0)
        self._deviation = max(float(examples.std()), 1e-30)
        self._weight = 1 / np.sqrt(power + (_NOISE * self._deviation) ** 2)
        self._weight[0, 0] = 0

    def agree(self, image: int, copy: int, transform: Transform) -> bool:
        """Return whether two images have the same details, or none that can be compared.

        Args:
          image, copy: positions in `chosen`.
          transform: from the image to the copy, in pixels of the coarse pictures.
        """
        if self._weight is None:
            return True
        pair = reduced(self._images, self._chosen[[image, copy]], _SIDE)
        x, y = to_float(pair).mean(axis=3, dtype=np.float64)
        target = self._texture(y)
        scaled = self._weight * target
        norm = np.linalg.norm(scaled)

        def window(place):
            found = self._texture(x, *place)
            found[:, 1::2] *= -1 if transform.flip else 1
            return found

        def correlation(place):
            found = self._weight * window(place)
            return (found * scaled).sum() / max(np.linalg.norm(found) * norm, 1e-30)

        size = 1 - 2 * transform.crop * self._unit / min(self._shape)
        start = np.array([size, size, transform.down * self._unit, transform.right * self._unit])
        if correlation(start) >= _AGREEMENT:
            return True
        steps = np.diag([_STEP, _STEP, self._unit, self._unit])
        best = scipy.optimize.minimize(
            lambda place: -correlation(place) if (abs(place - start)[:2] < 0.25).all() else 0.0,
            start,
            method="Nelder-Mead",
            options={
                "initial_simplex": np.vstack([start, start + steps]),
                "maxfev": _EVALUATIONS,
                "xatol": 0.01,
                "fatol": 1e-3,
            },
        )
        return -best.fun >= _AGREEMENT or self._only_noise(window(best.x), target)

    def _texture(self, image, height=1.0, width=1.0, down=0.0, right=0.0):
        ends = zip(self._shape, (height, width), (down, right), strict=True)
        rows, columns = (
            cosines(side, self._margin, scale, shift, side) for side, scale, shift in ends
        )
        return rows @ image @ columns.T

    def _only_noise(self, x, y):
        """Whether two coarse pictures differ by little more than noise, up to contrast."""
        coarse = np.zeros(x.shape, bool)
        coarse[:FREQUENCIES, :FREQUENCIES] = True
        coarse[0, 0] = False
        gain = (x * y)[coarse].sum() / max((x[coarse] ** 2).sum(), 1e-30)
        pixels = np.prod([side - 2 * self._margin for side in self._shape])
        difference = np.sqrt(((y - gain * x)[coarse] ** 2).sum() / pixels)
        contrast = np.linalg.norm(y.ravel()[1:]) / np.sqrt(pixels)  # without the mean
        return difference <= _DIFFERENCE * self._deviation and difference < _RELATIVE * contrast
