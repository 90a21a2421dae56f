"""The JAX adapter of mmap_ninja: nothing is here yet."""
