"""Chat with a fine-tuned model, in the terminal or through a pipe; nothing is opened to the network.

    python3 server.py --model_type chatglm --lora_dir xxx
    python3 server.py --lora_dir saved_models/tiny_base_cot_sample --greedy
    python3 server.py --lora_dir one_run another_run         # two adapters of one base: /adapter chooses
    python3 server.py --lora_dir my_run < questions.txt > answers.txt      # one line in, one answer out

`clear` forgets the conversation and `stop` ends it; /help lists the other commands. docs/chat.md tells more.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from utils import cli

if TYPE_CHECKING:
    from utils.terminal import Terminal


def make_parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    cli.add_lora_flag(parser.add_argument_group("run").add_argument, required=True, several=True)
    cli.add_model_flags(parser, model_type=None)
    cli.add_generation_flags(parser)
    return parser


@cli.reports_errors
def main(argv: Sequence[str] | None = None) -> int:
    flags = make_parser().parse_args(argv)

    from utils import adapters, assistant, chat, conversation, distributed, loading
    from utils.terminal import Terminal

    loading.quiet_libraries()
    distributed.set_threads()
    opened = assistant.open_run(*flags.lora_dir, **cli.loading_wishes(flags))
    context, first = adapters.context_length(opened.model), opened.origins[opened.names[0]]
    terminal = Terminal(chat.completions(opened.names))
    talk = chat.Chat(
        opened,
        flags,
        terminal,
        context=context and context - adapters.virtual_tokens(opened.model),
        asks_instructions=conversation.asks_instructions(first.run.sources if first.run else []),
    )
    for name, origin in opened.origins.items():
        terminal.note("\n".join(origin.lines(name)))
    if terminal.has_person:
        terminal.note("/help lists the commands; Ctrl-C stops an answer, Ctrl-D or stop ends the chat")
    try:
        with terminal.listening():
            return converse(talk.respond, terminal)
    except BrokenPipeError:  # whoever read the answers has gone, as `| head -1` does
        distributed.let_go_of_output()
        return 0


def converse(respond: Callable[[str], bool], terminal: Terminal) -> int:
    """Line after line until there is none or one ends it; 1 if one of a pipe's lines failed."""
    failed = 0
    while True:
        try:
            line = terminal.read()
            with terminal.busy():
                if not respond(line):
                    break
        except EOFError:
            break
        except KeyboardInterrupt:
            if not terminal.has_person:
                raise
            terminal.note("Ctrl-D or stop ends the chat")
        except BrokenPipeError:
            raise
        except (ValueError, OSError) as error:
            terminal.note(f"error: {error}")
            failed = int(not terminal.has_person)
    return failed


if __name__ == "__main__":
    sys.exit(main())
