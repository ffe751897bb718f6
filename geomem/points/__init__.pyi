from .neighbours import Nearest, nearest, squared_distances, two_nearest
from .placement import place, shard, stream
from .streaming import Stream
from .visit import PlacedPoints, Points

__all__ = [
    "Nearest",
    "PlacedPoints",
    "Points",
    "Stream",
    "nearest",
    "place",
    "shard",
    "squared_distances",
    "stream",
    "two_nearest",
]
