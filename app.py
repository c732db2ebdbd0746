"""Open a page in the browser: python app.py"""

from fuse.app.web.page import launch

if __name__ == "__main__":
    launch()
