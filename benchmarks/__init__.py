"""What mmap_ninja costs, measured beside 0.9.0 and a plain list. `README.md` tells what each file answers."""
