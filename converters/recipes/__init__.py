"""How candidates are made: the facts of engines, recipes, and the settings that a search may turn."""
