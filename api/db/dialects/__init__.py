"""Facts about each engine: one small file an engine, and no policy. Imports nothing."""
