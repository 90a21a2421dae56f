"""What needs Keras, on any of its backends, and no TensorFlow."""

try:
    import keras as _keras
except ModuleNotFoundError as error:
    if error.name != "keras":
        raise
    from mmap_ninja.errors import MissingExtraError

    raise MissingExtraError("mmap_ninja_tf.keras needs Keras: pip install 'mmap-ninja[tf]'") from error

from mmap_ninja_tf.position import FitPosition
from mmap_ninja_tf.pydataset import MmapPyDataset

del _keras

__all__ = ["FitPosition", "MmapPyDataset"]
