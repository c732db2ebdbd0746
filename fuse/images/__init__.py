"""Pictures as people have them, from a file to the RGB that a model is shown."""

from fuse.images.options import ReadingOptions
from fuse.images.reading import open_image

__all__ = ["ReadingOptions", "open_image"]
