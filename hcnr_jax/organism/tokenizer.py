"""Makes the world's tokenizer: words are whole tokens, names split into syllables.

It is a WordPiece tokenizer: `Kalomi` is `Ka ##lo ##mi`, because all syllables have two letters and no word of the
language begins a name. Decoding restores the text exactly.
"""

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from hcnr_jax.organism.language import SYLLABLES, WORD, words

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
PAD_ID, BOS_ID, EOS_ID, UNK_ID = range(4)


def vocabulary() -> dict[str, int]:
    """Return token -> id: special tokens, the three forms of every syllable, then the words in order of appearance."""
    forms = [form for syllable in SYLLABLES for form in (syllable, syllable.capitalize(), f"##{syllable}")]
    return {token: number for number, token in enumerate(dict.fromkeys([*SPECIAL, *forms, *words()]))}


def make_tokenizer() -> PreTrainedTokenizerBase:
    """Make the tokenizer, which puts `<s>` before a text as Llama's does."""
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
