"""The drawn world: scenes, their pictures, their captions, and sentences that go beyond them."""
