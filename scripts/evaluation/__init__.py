"""How good the texts of a run are, by references and by models that it did not optimise."""
