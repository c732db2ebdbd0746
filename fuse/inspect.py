"""Look at tokenizers, embeddings, next tokens and adapters: python -m fuse.inspect --help"""

from fuse.app.inspection.command import main

if __name__ == "__main__":
    main()
