"""`gptjax sample`: chooses by the kind of model what to sample."""

import sys

from gptjax import command_line
from gptjax.commands import sample_pairs, sample_speech, sample_text
from gptjax.commands.sample_options import Sample
from gptjax.data.tokenizer import PairTokenizer, SpeechTokenizer
from gptjax.errors import exit_codes
from gptjax.runs import run_directory
from gptjax.scale import compilation, devices, memory

SPEECH_ONLY = ("audio", "format")
PAIRS_ONLY = ("source", "source_file", "n_best")
ENCODER_DECODER_ONLY = ("beam", "length_penalty")
LANGUAGE_MODEL_ONLY = ("prompt", "prompt_file", "max_new_tokens", "temperature", "top_k", "top_p")
LANGUAGE_MODEL_ONLY += ("greedy", "num_samples", "exact_window", "stop", "ignore_eos", "seed")


def main(argv: list[str] | None = None) -> None:
    with exit_codes():
        arguments = sys.argv[1:] if argv is None else argv
        command = command_line.parse_command(Sample, arguments, "gptjax sample")
        with memory.advice("less memory is needed with fewer --num-samples, or a smaller --beam"):
            sample(command)


def sample(command: Sample) -> None:
    """Raises UserError for a folder that is not a run, bad input, or an option out of range."""
    devices.require_backend()
    compilation.use_cache()
    run_config = run_directory.read_config(command.run)
    tok = run_directory.read_tokenizer(command.run)
    if isinstance(tok, PairTokenizer):
        others = LANGUAGE_MODEL_ONLY + SPEECH_ONLY
        command_line.refuse_options(command, others, "turns sources into targets; give it --source")
        sample_pairs.transduce(command, run_config, tok)
    elif isinstance(tok, SpeechTokenizer):
        others = (*LANGUAGE_MODEL_ONLY, *PAIRS_ONLY, "interactive")
        command_line.refuse_options(command, others, "turns recordings into text; give it --audio")
        sample_speech.transcribe_files(command, run_config, tok)
    else:
        others = SPEECH_ONLY + PAIRS_ONLY + ENCODER_DECODER_ONLY
        command_line.refuse_options(command, others, "is a language model; give it --prompt")
        sample_text.continue_prompt(command, run_config, tok)
