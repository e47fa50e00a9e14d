"""Run torchrun without its error report, because a process that fails reports the reason itself, in one line.

    python -m engine.launch --standalone --nproc_per_node=2 main_dgl.py --train ...     # takes torchrun's flags

The exit status is that of the process that failed first, or 128 + the number of the signal.
"""

import logging
import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main

if __name__ == "__main__":
    logging.disable(logging.ERROR)
    if "--standalone" in sys.argv:  # works also if the machine's name cannot be resolved
        sys.argv.insert(1, "--local_addr=127.0.0.1")
    try:
        main()
    except ChildFailedError as error:
        status = error.get_first_failure()[1].exitcode
        sys.exit(status if status > 0 else 128 - status)
    except SignalException as interruption:
        sys.exit(128 + interruption.sigval)
