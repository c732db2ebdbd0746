"""Write the page of a run, and the index of several: python -m fuse.report FOLDER"""

from fuse.app.report.command import main

if __name__ == "__main__":
    main()
