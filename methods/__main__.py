"""The table of training rules as text, for people and for compare.sh.

python -m methods              # every rule: name, what tables call it, its flags
python -m methods dgl joint    # of these, a word each: <name>:<flag that is tuned, if any>
"""

from methods import METHODS
from utils.errors import InputError, OneLineParser, run


def main():
    parser = OneLineParser(prog="methods", description="List the training rules that --method takes.")
    parser.add_argument("names", nargs="*", help="print these for compare.sh")
    names = parser.parse_args().names
    for name in names:
        if name not in METHODS:
            raise InputError(f"methods: '{name}' is none of {' '.join(METHODS)}")
    for name, entry in METHODS.items():
        if not names:
            print(f"{name:14} {entry.label:14} {' '.join(f'--{flag.name}' for flag in entry.flags)}".rstrip())
    for name in names:
        print(f"{name}:{METHODS[name].tuned or ''}")


if __name__ == "__main__":
    run(main)
