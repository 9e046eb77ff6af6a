"""Recipes, one TOML file per result; read by `refseg.config.load_recipe`."""
