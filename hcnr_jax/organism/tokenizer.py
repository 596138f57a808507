"""The world's tokenizer: whole words, and names by syllable, as an ordinary Hugging Face tokenizer folder.

WordPiece: `Kalomi` is `Ka ##lo ##mi`, because all syllables are two letters long and no word of the language is the
beginning of a name. Decoding gives back the very text.
"""

from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from hcnr_jax.organism.language import SYLLABLES, WORD, words

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
PAD_ID, BOS_ID, EOS_ID, UNK_ID = range(4)


def vocabulary() -> dict[str, int]:
    """Token -> id: specials, the three forms of every syllable, then every word of the language in order of
    appearance.
    """
    forms = [form for syllable in SYLLABLES for form in (syllable, syllable.capitalize(), f"##{syllable}")]
    return {token: number for number, token in enumerate(dict.fromkeys([*SPECIAL, *forms, *words()]))}


def make_tokenizer() -> PreTrainedTokenizerBase:
    """The tokenizer; it puts `<s>` before a text, as Llama's does."""
    tokenizer = Tokenizer(models.WordPiece(vocabulary(), unk_token=SPECIAL[UNK_ID], max_input_chars_per_word=40))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(WORD), behavior="isolated")]
    )
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS_ID)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=SPECIAL[PAD_ID],
        bos_token=SPECIAL[BOS_ID],
        eos_token=SPECIAL[EOS_ID],
        unk_token=SPECIAL[UNK_ID],
    )


def save_tokenizer(folder: Path) -> None:
    """Write the tokenizer's files into `folder`, which exists."""
    make_tokenizer().save_pretrained(str(folder))
