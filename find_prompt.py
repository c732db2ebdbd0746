"""Find a prompt: python find_prompt.py image=images/house.png"""

from fuse.app.main import main

if __name__ == "__main__":
    main()
