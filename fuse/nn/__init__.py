"""What networks are made of and fed with: batches, cached prefixes, attention, output layers."""
