"""Undo for MySQL and MariaDB, which commit at every DDL statement: what a batch did is taken back, or none of it."""
