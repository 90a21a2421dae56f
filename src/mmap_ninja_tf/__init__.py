"""mmap_ninja for TensorFlow and Keras: maps as `tf.data` datasets, and as what `fit` takes on any backend of Keras.

`to_tf_dataset` makes a `tf.data.Dataset`. `mmap_ninja_tf.keras`, which needs no TensorFlow, has `MmapPyDataset` for
all backends of Keras and `FitPosition`, which goes on with an interrupted `fit`. Nothing is imported before it is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmap_ninja_tf.dataset import to_tf_dataset
    from mmap_ninja_tf.keras import FitPosition, MmapPyDataset

_MODULES = {"to_tf_dataset": "dataset", "FitPosition": "keras", "MmapPyDataset": "keras"}

__all__ = ["FitPosition", "MmapPyDataset", "to_tf_dataset"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name != "tensorflow":
            raise
        from mmap_ninja.errors import MissingExtraError

        raise MissingExtraError("mmap_ninja_tf needs TensorFlow: pip install 'mmap-ninja[tf]'") from error


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
