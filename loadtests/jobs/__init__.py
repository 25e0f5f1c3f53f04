"""The jobs of `loadtests.bench`, each a function from a `Bench` to its tables."""
