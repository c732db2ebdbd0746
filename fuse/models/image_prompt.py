"""What networks that look at a picture are told: a question in their chat template, or a task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fuse.models.chat import render
from fuse.models.loading import load_pretrained

if TYPE_CHECKING:
    from PIL.Image import Image

TASKS = {
    "Florence2Processor": "<CAPTION>",
    "FuyuProcessor": "Generate a coco-style caption.\n",
    "Kosmos2Processor": "An image of",
    "PaliGemmaProcessor": "<image>caption en",
}
"""What networks without a chat template were taught to caption at, by their processors."""


@dataclass(frozen=True)
class ImagePrompt:
    """A text that stands beside a picture.

    Args:
        text: the text, with the token that stands for the picture if it has one; None for none.
        rendered: whether it comes from a chat template.
    """

    text: str | None
    rendered: bool = False


class ImagePrompts:
    """Make a network's inputs of a picture and a text.

    Args:
        processor: the network's, of transformers.
    """

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self._chats: dict[str, str] = {}
        """What the chat template makes of each question."""

    def choices(self, question: str, prompt: str | None = None) -> list[ImagePrompt]:
        """Return the texts that a network may be told: the first one that it takes.

        Args:
            question: for networks that are talked to.
            prompt: the whole text; None for the question, or what the network was taught.
        """
        task = TASKS.get(type(self.processor).__name__)
        if prompt is not None:
            return [ImagePrompt(prompt)]
        if self.processor.chat_template:
            return [ImagePrompt(self._chat(question), rendered=True)]
        if task is not None:
            return [ImagePrompt(task)]
        token = getattr(self.processor, "image_token", None)
        with_image = [] if token is None else [ImagePrompt(f"{token}\n{question}")]
        return [ImagePrompt(None), *with_image, ImagePrompt(question)]

    def inputs(self, image: Image, prompt: ImagePrompt) -> Any:
        """Return what the network reads."""
        if not prompt.rendered:
            text = {} if prompt.text is None else {"text": prompt.text}
            return self.processor(images=image, return_tensors="pt", **text)
        return self.processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image", "image": image}]}],
            chat_template="{{ rendered }}",
            rendered=prompt.text,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )

    def _chat(self, question: str) -> str:
        """Return the question about a picture in the chat template."""
        if question not in self._chats:
            words = {"type": "text", "text": question}
            messages = [{"role": "user", "content": [{"type": "image"}, words]}]
            special = self.processor.tokenizer.special_tokens_map
            self._chats[question] = render(self.processor.chat_template, messages, special)
        return self._chats[question]


class ProcessorPair:
    """A tokenizer and an image processor of a network that has no processor for both."""

    chat_template = None

    def __init__(self, tokenizer: Any, image_processor: Any) -> None:
        self.tokenizer, self.image_processor = tokenizer, image_processor

    def __call__(self, images: Image, return_tensors: str) -> Any:
        """Return what the network reads of a picture; it is told nothing."""
        return self.image_processor(images=images, return_tensors=return_tensors)


def load_processor(model_id: str, **options: Any) -> Any:
    """Load the processor of a network that reads pictures and says or reads text.

    Raises:
        FuseError: the files of its tokenizer or its image processor are missing.
    """
    from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer

    processor = load_pretrained(AutoProcessor, model_id, **options)
    if hasattr(processor, "image_processor") and hasattr(processor, "tokenizer"):
        return processor
    tokenizer = load_pretrained(AutoTokenizer, model_id, **options)
    return ProcessorPair(tokenizer, load_pretrained(AutoImageProcessor, model_id, **options))
