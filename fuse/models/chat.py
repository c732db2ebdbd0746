"""Chat templates of models: programs that others wrote, rendered in a process with limits.

With a model that was trained to chat, a prompt stands within messages, and the model's template
writes what stands around it: role names, special tokens, the beginning of the assistant's turn.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from fuse.errors import FuseError
from fuse.text.messages import PROMPT, Message, check_messages

STAND_IN = "Jxqvzk"
"""What stands there while a template is rendered: a word that no template writes itself."""
MAX_SECONDS = 10
"""How long a template may take, in seconds of processor time."""
MAX_START_SECONDS = 120
"""How long its process may take in all."""
MAX_BYTES = 2**30
"""How much memory it may take."""
MAX_CHARACTERS = 1_000_000

RENDER = f"""
import sys
sys.path[:] = sys.argv[1:]  # not the folder that we happen to be in
import json
from transformers.utils.chat_template_utils import render_jinja_template
try:
    import resource
    usage = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(usage.ru_utime + usage.ru_stime) + {MAX_SECONDS}
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    with open("/proc/self/statm") as file:
        space = int(file.read().split()[0]) * resource.getpagesize() + {MAX_BYTES}
    resource.setrlimit(resource.RLIMIT_AS, (space, space))
except (ImportError, OSError):
    pass  # no such limits here: there is the one on all seconds
given = json.load(sys.stdin)
rendered = render_jinja_template(**given)[0][0]
if len(rendered) > {MAX_CHARACTERS}:
    sys.exit("it is too long")
sys.stdout.write(json.dumps(rendered))
"""


def text_around(tokenizer: Any, messages: list[Message]) -> tuple[str, str]:
    """Return what a model's chat template writes before and after the prompt in messages.

    The text, tokenised without further special tokens, is what `apply_chat_template` gives with
    `add_generation_prompt`; a label that follows is how the assistant's turn begins.

    Args:
        tokenizer: of transformers, with a chat template.
        messages: roles and contents, one of which holds `PROMPT` once.

    Raises:
        FuseError: there is no template, or it writes the prompt not once.
    """
    if not tokenizer.chat_template:
        raise FuseError(
            f"template=chat: the tokenizer of {tokenizer.name_or_path} has no chat template; "
            "give template=plain, or choose a model that was trained to chat"
        )
    check_messages(messages)
    filled = []
    for message in messages:
        content = message["content"].replace(PROMPT, STAND_IN)
        filled.append({"role": message["role"], "content": content})
    text = render(tokenizer.chat_template, filled, tokenizer.special_tokens_map)
    before, *after = text.split(STAND_IN)
    if len(after) != 1:
        raise FuseError(
            f"messages={messages}: the model's chat template writes the prompt {len(after)} times, "
            "expected once; put it into another message"
        )
    return before, after[0]


def render(template: Any, messages: list[dict[str, Any]], tokens: dict[str, Any]) -> str:
    """Return what a chat template makes of messages.

    Args:
        template: the text of a template, or several by their names.
        messages: with roles and contents, in JSON.
        tokens: the special tokens by their names in the template.

    Raises:
        FuseError: it ends with an error, takes too long or too much memory.
    """
    if isinstance(template, dict):
        template = template.get("default")
    given = {
        "chat_template": template,
        "conversations": [messages],
        "add_generation_prompt": True,
        **{name: str(token) for name, token in tokens.items() if isinstance(token, str)},
    }
    try:
        done = subprocess.run(
            [sys.executable, "-c", RENDER, *(path for path in sys.path if path)],
            input=json.dumps(given),
            capture_output=True,
            text=True,
            timeout=MAX_START_SECONDS,
        )
    except (OSError, TypeError, subprocess.TimeoutExpired) as error:
        raise _failed(type(error).__name__) from error
    if done.returncode < 0:
        raise _failed(f"it took more than {MAX_SECONDS} seconds, or too much memory")
    if done.returncode:
        raise _failed((done.stderr.strip() or "no reason given").splitlines()[-1][:300])
    return str(json.loads(done.stdout))


def _failed(reason: str) -> FuseError:
    return FuseError(
        f"model_id: its chat template could not be rendered ({reason}); "
        "repair it or choose another model"
    )
