"""How candidates are made: recipes, and the settings that a search may turn. Pure."""
