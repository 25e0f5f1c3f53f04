"""The jobs of `loadtests.bench`, each a function that takes a `Bench` and yields its tables."""
