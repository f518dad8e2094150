"""The demo model: a small Llama checkpoint that ships with Quire and is the default of every command.

`grammar.py` writes what it learns from, `make.py` trains it and writes the files beside this one.
Everything here is the project's own; nothing is downloaded.
"""

from pathlib import Path

PATH = Path(__file__).parent
