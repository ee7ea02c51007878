"""gunicorn's settings for gevent with --preload: the master is patched before it loads the app."""

from __future__ import annotations

from gevent import monkey  # type: ignore[import-untyped]

monkey.patch_all()

from api.web.gunicorn_hooks import child_exit, on_exit, pre_fork  # noqa: E402

__all__ = ["child_exit", "on_exit", "pre_fork"]
