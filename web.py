"""A page to talk to fine-tuned models, and an API that clients already speak (OpenAI's), in one process.

    python3 web.py --model_type chatglm --lora_dir xxx
    python3 web.py --lora_dir one_run another_run             # two adapters of one base, to be chosen and compared
    python3 web.py --lora_dir my_run --host 0.0.0.0 --api_key_file key.txt     # for others, who need the key
    curl http://127.0.0.1:7860/v1/models

It listens on the loopback alone unless --host says otherwise, and then not without a key. docs/web.md tells of the
page, docs/api.md of the API.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from utils import cli

PORT = 7860


def make_parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    cli.add_lora_flag(parser.add_argument_group("run").add_argument, required=True, several=True)
    add = parser.add_argument_group("server").add_argument
    add("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine alone)")
    add("--port", type=cli.natural_int, default=PORT, help=f"0: any that is free (default: {PORT})")
    add("--api_key", help="what clients must send; others may see it on this command line: better --api_key_file")
    add(
        "--api_key_file",
        type=Path,
        metavar="FILE",
        help="holds the key (default: the environment's ALPACA_COT_API_KEY)",
    )
    add("--max_batch", type=cli.positive_int, default=32, metavar="N", help="answers decoded together (default: 32)")
    add("--max_queue", type=cli.positive_int, default=64, metavar="N", help="answers that may wait (default: 64)")
    add("--timeout", type=cli.positive_float, default=300.0, metavar="S", help="seconds for an answer (default: 300)")
    add("--log_prompts", action="store_true", help="write questions and answers to the log (default: only how many)")
    cli.add_model_flags(parser, model_type=None)
    cli.add_generation_flags(parser)
    return parser


@cli.reports_errors
def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser()
    flags = parser.parse_args(argv)
    if flags.api_key and flags.api_key_file:
        parser.error("--api_key and --api_key_file are two keys: give one")
    key = flags.api_key or os.environ.get("ALPACA_COT_API_KEY")
    if flags.api_key_file:
        key = flags.api_key_file.read_text(encoding="utf-8").strip()
    if not key and not is_loopback(flags.host):
        parser.error(
            f"--host {flags.host} can be reached by others, who would need no key: give one with --api_key_file, or "
            "leave --host out"
        )

    from utils import assistant, clients, distributed, loading, page, scheduling, service
    from utils.service import listening

    access = service.Access(api_key=key or None)
    loading.quiet_libraries()
    distributed.set_threads()
    opened = assistant.open_run(*flags.lora_dir, **cli.loading_wishes(flags))
    scheduler = scheduling.Scheduler(
        opened, max_batch=flags.max_batch, max_queue=flags.max_queue, timeout=flags.timeout
    )
    waiting = clients.Clients()
    app = service.application(opened, scheduler, access=access, clients=waiting, log_prompts=flags.log_prompts)

    gate = page.mount(app, page.blocks(opened, scheduler, clients=waiting, flags=flags))
    for name, origin in opened.origins.items():
        print("\n".join(origin.lines(name)), file=sys.stderr)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")

    def close() -> None:
        scheduler.close()
        gate.close()

    return listening.listen(app, flags.host, flags.port, close=close, say=lambda text: print(text, flush=True))


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


if __name__ == "__main__":
    sys.exit(main())
