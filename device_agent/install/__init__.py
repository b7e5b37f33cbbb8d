"""An agent becomes a service of a board: `edgekit agent install` and `uninstall`.

`files` says what stands in each file, `plan` (pure) which steps it takes from what is there, `carry` does them.
"""
