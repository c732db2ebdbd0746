"""Search methods, one file each; each only proposes. `base` says how to write one."""
