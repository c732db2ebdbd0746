"""Pages that show what a run, or a folder of runs, has found: python -m fuse.report FOLDER"""
