"""The commands of `nsk`, one module each.

Adding a command takes a module with a function `execute(values)` and a line in `COMMANDS`. The
first line of the module's docstring is its help text. Modules are imported by `--help`, so they
import TensorFlow, and what needs it, inside functions alone.
"""

from nsk.commands import corrupt, evaluate, plan, predict, run, score, select, sweep, verify

COMMANDS = {
    "run": run,
    "plan": plan,
    "score": score,
    "select": select,
    "predict": predict,
    "evaluate": evaluate,
    "corrupt": corrupt,
    "sweep": sweep,
    "verify": verify,
}
