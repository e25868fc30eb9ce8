"""Small, randomly initialised Hugging Face models in folders, as a download would leave them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "green", "blue", "white", "screen", "that", "gets", "darker")
SIZE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
VISION = {**SIZE, "image_size": 16, "patch_size": 8}
TEXT = {
    **SIZE, "vocab_size": len(WORDS), "max_position_embeddings": 24,
    "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3,
}  # fmt: skip


def save_model(folder: Path, kind: str, *, dtype: torch.dtype = torch.float32) -> Path:
    """One of "vit", "videomae", "bert", "clip", "siglip", with a tokenizer where it reads text."""
    import transformers as hf

    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = {
            "vit": lambda: hf.ViTModel(hf.ViTConfig(**VISION)),
            "bert": lambda: hf.BertModel(hf.BertConfig(**TEXT)),
            "clip": lambda: hf.CLIPModel(hf.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=8)),
            "videomae": lambda: hf.VideoMAEModel(hf.VideoMAEConfig(**VISION, num_frames=4, tubelet_size=2)),
            "siglip": lambda: hf.SiglipModel(hf.SiglipConfig(text_config=TEXT, vision_config=VISION)),
        }[kind]()
    model.to(dtype).save_pretrained(folder)
    if kind not in ("vit", "videomae"):
        save_tokenizer(folder)
    return folder


def save_tokenizer(folder: Path) -> None:
    """Whole words, between [CLS] and [SEP]."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import BertPreTokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = BertPreTokenizer()
    words.post_processor = TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    special = {
        "pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "eos_token": "[SEP]",
    }  # fmt: skip
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)


def save_processor(folder: Path, mean: Sequence[float], std: Sequence[float]) -> None:
    """preprocessor_config.json, as ViT's has it."""
    config = {"image_processor_type": "ViTImageProcessor", "image_mean": list(mean), "image_std": list(std)}
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
