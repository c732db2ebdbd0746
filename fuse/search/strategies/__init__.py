"""Search strategies, one file each; each only selects. `base` says how to write one."""
