"""The shipped recipes, one TOML file per result; `refseg.config.load_recipe` reads them."""
