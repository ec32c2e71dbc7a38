"""Reading and writing files: images, arrays, MATLAB files, weights, checkpoints and run directories."""

__all__: list[str] = []
