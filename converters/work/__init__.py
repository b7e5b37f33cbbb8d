"""Where candidates are made and run: the workbench of a build and its worker processes."""
