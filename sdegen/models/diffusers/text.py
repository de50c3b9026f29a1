"""What a pipeline's text encoders make of prompts, as the conditions of its network."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...core.arguments import whole
from ...core.conditions import mapped, rows_of
from ...core.errors import InvalidInputError, shortened
from ...core.kinds import checked
from ..denoiser import Denoiser


class Text:
    """Prompts as conditions: text(prompts) -> {condition: tensor ..., "null": what guidance replaces them by}.

    Args:
        pipe: the pipeline, whose tokenizers and text encoders are used as it uses them.
        model: its network's.
        pixels: of a picture, side by side, that become one number of its latents.
    """

    def __init__(self, pipe: Any, model: Denoiser, pixels: int) -> None:
        self._pipe, self._model, self._pixels = pipe, model, pixels
        self._network: Any = model.net

    def __repr__(self) -> str:
        return f"Text({', '.join(sorted(self._network.condition_names()))})"

    @checked
    def __call__(
        self, prompts: str | int | Sequence[str | int], *, n: int = 1, negative: str | None = None
    ) -> dict[str, Any]:
        """The conditions of samples.

        Args:
            prompts: one, or several; of a network of classes their names or numbers.
            n: samples of each prompt.
            negative: what guidance goes away from; None: what the pipeline takes for no prompt.

        Returns:
            The conditions of len(prompts) n samples, a row each, by the names that the network has for them; and
            "null", those of one sample without its batch axis, for `Guided(model, scale, null=...)`.

        Raises:
            InvalidInputError: no prompt, or one that is no text; of classes, an unknown one, or a negative prompt.
        """
        given = [prompts] if isinstance(prompts, str | int) else list(prompts)
        if not given:
            raise InvalidInputError("got no prompt, expected one or several")
        different = list(dict.fromkeys(given))
        with torch.no_grad():
            rows, null = self._classes(different, negative) if self.of_classes else self._texts(different, negative)
        rows = mapped(rows, Tensor.detach)
        which = torch.tensor([different.index(prompt) for prompt in given]).repeat_interleave(whole(n, "n", least=1))
        return {**rows_of(rows, which), "null": mapped(null, lambda v: v.detach()[0])}

    @property
    def of_classes(self) -> bool:
        """Whether prompts are classes."""
        return "class_labels" in self._network.condition_names() and not hasattr(self._pipe, "encode_prompt")

    def _classes(self, names: list[Any], negative: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
        if negative is not None:
            raise InvalidInputError(f"got negative={negative!r}, expected none: this network is told classes")
        known = getattr(self._pipe, "labels", None) or {}
        unknown = [name for name in names if isinstance(name, str) and name not in known]
        if unknown:
            some = ", ".join(map(repr, list(known)[:3])) or "none has a name here"
            raise InvalidInputError(f"got {unknown[0]!r}, expected the name of a class ({some} ...), or its number")
        numbers = torch.tensor([known[name] if isinstance(name, str) else name for name in names])
        none = self._network.classes - 1
        return {"class_labels": numbers.to(self._device)}, {"class_labels": torch.tensor([none], device=self._device)}

    @property
    def _device(self) -> torch.device:
        return next(self._network.parameters()).device

    def _texts(self, prompts: list[Any], negative: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
        if not all(isinstance(prompt, str) for prompt in prompts):
            raise InvalidInputError(f"got {shortened(prompts)}, expected texts")
        takes = inspect.signature(self._pipe.encode_prompt).parameters
        if "negative_prompt" not in takes:  # Flux: the same encoder is asked twice
            found, none = self._encoded(prompts), self._encoded([negative or ""])
            return self._named(found[0], None, found[1]), self._named(none[0], None, none[1])
        positive = _halves(self._encoded(prompts, do_classifier_free_guidance=False))[0]
        told = {} if negative is None else {"negative_prompt": negative}
        null = _halves(self._encoded(prompts[0], do_classifier_free_guidance=True, **told))[1]
        return self._named(*positive), self._named(*null)

    def _encoded(self, prompts: str | list[str], **more: Any) -> tuple[Any, ...]:
        takes = inspect.signature(self._pipe.encode_prompt).parameters
        words = {"prompt": prompts, "prompt_2": None, "prompt_3": None, "device": self._device, **more}
        words |= {"num_images_per_prompt": 1, "clean_caption": False}
        return self._pipe.encode_prompt(**{name: value for name, value in words.items() if name in takes})

    def _named(self, tokens: Tensor, mask: Tensor | None, pooled: Tensor | None) -> dict[str, Any]:
        """The conditions by the names that the network has for them."""
        names = self._network.condition_names()
        found: dict[str, Any] = {"encoder_hidden_states": tokens}
        if mask is not None:
            found["encoder_attention_mask"] = mask
        if pooled is not None and "pooled_projections" in names:
            found["pooled_projections"] = pooled
        elif pooled is not None and "added_cond_kwargs" in names:
            sizes = torch.tensor([*self._size, 0, 0, *self._size], device=tokens.device).expand(len(tokens), 6)
            found["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": sizes}
        elif "added_cond_kwargs" in names:  # PixArt's
            height, width = self._size
            sizes = torch.tensor([height, width, height / width], device=tokens.device).expand(len(tokens), 3)
            found["added_cond_kwargs"] = {"resolution": sizes[:, :2], "aspect_ratio": sizes[:, 2:]}
        return found

    @property
    def _size(self) -> tuple[float, float]:
        """Height and width of the pictures."""
        event: Any = self._model.event_shape
        return float(event[-2] * self._pixels), float(event[-1] * self._pixels)


def _halves(found: tuple[Any, ...]) -> tuple[tuple[Any, Any, Any], tuple[Any, Any, Any]]:
    """(tokens, mask, pooled) of the prompts, and of none, from what `encode_prompt` returns.

    Two: tokens, none's. Four: masks come after their tokens (B, T), pooled texts after both (B, width).
    """
    if len(found) == 2:
        return (found[0], None, None), (found[1], None, None)
    if found[1] is not None and found[1].ndim == 2:
        return (found[0], found[1], None), (found[2], found[3], None)
    return (found[0], None, found[2]), (found[1], None, found[3])
