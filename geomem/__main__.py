"""The command `geomem`, or `python -m geomem`; `geomem --help` lists its subcommands."""

from __future__ import annotations

import importlib
import os
import runpy
import signal
import sys

import geomem
from geomem.experiments.common import command_line, dataclass_flags, interruption

__all__ = ["COMMANDS", "main"]

# Under each heading: the commands, with a line on what they do.
COMMANDS = {
    "Start here": {
        "audit": "Check a data set for copies and for its risk of memorization.",
        "danger-zone": "Find the noise levels at which a data set can be memorized (Figure 3).",
        "train": "Train a diffusion model, with or without a gap in its training noise.",
    },
    "Copies and generated images": {
        "duplicates": "List copies in a data set, and held-out copies of its training images.",
        "sample": "Sample images from a training run or from published EDM weights.",
        "evaluate": "Report copies of training images, leftover noise and quality.",
    },
    "The paper's other figures": {
        "denoising-error": "Compare denoising errors on training and held-out images (Figure 1).",
        "noise-level-memorization": "Find the levels at which denoising makes copies (Figure 2).",
        "gap-training": "Train with and without the danger zone, and compare (Figure 4).",
        "gap-sweep": "Train with gaps in other places and of other widths (Figure 5).",
        "denoiser-swap": "Swap the denoisers of two runs on a window of sampling steps (Table 1).",
        "large-noise": "Compare denoisers with the Gaussian one at large noise (Theorem 4.9).",
    },
    "Beyond the paper": {
        "repair": "Sample with other denoisers in the danger zone, and count the copies.",
        "local-denoisers": "Compare networks with denoisers that copy and with local ones.",
        "memorization-onset": "Count the images that a network sees before it copies.",
    },
    "Benchmarks": {
        "benchmark": "Time the geometry against NumPy, FAISS and the device's peak.",
        "benchmark-training": "Time training steps on this machine's devices.",
        "scale": "Time geometry on more images than memory holds.",
        "compile": "Compile for TPUs or GPUs that you do not have: memory, least time.",
    },
}
_NAMES = [name for commands in COMMANDS.values() for name in commands]
_COMPLETION = """_geomem() {{
  local words cur=${{COMP_WORDS[COMP_CWORD]}}
  if ((COMP_CWORD == 1)); then
    words="{names} --help --version --print-completion"
  else
    case ${{COMP_WORDS[1]}} in
{cases}
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$cur"))
}}
complete -o default -F _geomem geomem"""


def main() -> None:
    """Run the command in the first argument."""
    if "" not in sys.path:  # as with `python -m`, so that --denoiser finds one's own modules
        sys.path.append("")
    command_line.prepare()
    try:
        _dispatch(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output has ended, as in `geomem --help | head`
        os._exit(128 + signal.SIGPIPE)
    except OSError as error:
        command_line.fail(command_line.describe(error))
    except ValueError as error:
        command_line.fail(error)
    except KeyboardInterrupt:
        interruption.end()


def _dispatch(words):
    if not words or words[0] in ("-h", "--help"):
        print(_help())
    elif words[0] == "--version":
        print(f"geomem {geomem.__version__}")
    elif words[0] == "--print-completion":
        print(_completion(words[1] if len(words) > 1 else ""))
    elif (name := words[0].replace("_", "-")) in _NAMES:
        sys.argv = [sys.argv[0], *words[1:]]
        command_line.started_as(f"geomem {name}")
        runpy.run_module(_module(name), run_name="__main__", alter_sys=True)
    else:
        raise ValueError(dataclass_flags.unknown(words[0], _NAMES, "command"))


def _module(name):
    return f"geomem.experiments.{name.replace('-', '_')}"


def _help():
    width = max(map(len, _NAMES))
    lines = ["usage: geomem COMMAND [flags]", "", "Where do diffusion models memorize?"]
    for heading, commands in COMMANDS.items():
        lines += ["", f"{heading}:"]
        lines += [f"  {name:{width}}  {text}" for name, text in commands.items()]
    lines += [
        "",
        "geomem COMMAND --help lists a command's flags.",
        "geomem --version prints the version.",
        'eval "$(geomem --print-completion bash)" completes commands and flags; zsh works too.',
        "GEOMEM_NO_COMPILATION_CACHE=1 (environment) turns off the cache of compiled programs.",
    ]
    return "\n".join(lines)


def _completion(shell):
    if shell not in ("bash", "zsh"):
        raise ValueError(f"--print-completion must be bash or zsh, got {shell!r}.")
    cases = []
    for name in _NAMES:
        module = importlib.import_module(_module(name))
        words = [*getattr(module, "PRESETS", ())] if name == "train" else []
        words += map(dataclass_flags.option, module.Config.__dataclass_fields__)
        cases.append(f'      {name}) words="{" ".join(words)} --help" ;;')
    script = _COMPLETION.format(names=" ".join(_NAMES), cases="\n".join(cases))
    start = "autoload -U +X compinit bashcompinit && compinit && bashcompinit\n"
    return start * (shell == "zsh") + script


if __name__ == "__main__":
    main()
