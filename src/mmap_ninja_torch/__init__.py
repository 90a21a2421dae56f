"""The PyTorch adapter of mmap_ninja: nothing is here yet."""
