"""Messages of a chat, one of which holds the prompt."""

from __future__ import annotations

from typing_extensions import TypedDict

from fuse.errors import FuseError

PROMPT = "{prompt}"
"""Where the prompt stands."""


class Message(TypedDict):
    """One message of a chat."""

    role: str
    content: str


def check_messages(messages: list[Message]) -> None:
    """Raise FuseError where messages do not hold the prompt once."""
    count = sum(message["content"].count(PROMPT) for message in messages)
    if count != 1:
        raise FuseError(f"messages={messages}: {PROMPT} stands there {count} times, expected once")
