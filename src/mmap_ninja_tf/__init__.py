"""The TensorFlow and Keras adapter of mmap_ninja: nothing is here yet."""
