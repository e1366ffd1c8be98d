"""Stand in for the download of IMDB in every Python process of the tests.

Put on PYTHONPATH, Python imports this file at start-up. Keras's `get_file`, which
`keras.datasets.imdb` calls, then answers with the file that IMDB_STAND_IN names or the
word index beside it. Where the variable is empty it fails as without a network.
Everything else is Keras's own.
"""

import importlib.abc
import importlib.machinery
import os
import sys


def stand_in(fname=None, origin=None, **_):
    path = os.environ.get("IMDB_STAND_IN")
    if path and fname == "imdb_word_index.json":
        return os.path.join(os.path.dirname(path), fname)
    if path:
        return path
    # Keras raises a plain Exception, and so must its stand-in.
    raise Exception(  # noqa: TRY002
        f"URL fetch failure on {origin}: None -- no network in the tests"
    )


class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name != "keras.src.utils.file_utils":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            module.get_file = stand_in

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Finder())
