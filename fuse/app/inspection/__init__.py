"""What people ask of tokenizers and language models, one file a question: python -m fuse.inspect"""
