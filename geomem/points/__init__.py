"""The engine: visit all points, exactly, wherever they are; nearest neighbours, softmax sums."""
