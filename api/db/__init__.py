"""The database layer. Imports nothing, so that ``python -m api.db.migrations`` loads each module once."""
