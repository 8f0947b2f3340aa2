"""What needs a GPU to be measured: overhead, equality, KV transfer, restarts, HiCache. `python -m benchmarks.gpu`."""
