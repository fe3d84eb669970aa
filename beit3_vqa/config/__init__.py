"""The options of a run: what there is (options), what this run has (config), and who decides it (resolve)."""
