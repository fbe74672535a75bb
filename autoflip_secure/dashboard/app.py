"""The web application: the page's own files, JSON for it, and /metrics."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query
from fastapi.responses import FileResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.middleware.gzip import GZipMiddleware

from autoflip_secure.dashboard.guard import Guard
from autoflip_secure.dashboard.homes import Home
from autoflip_secure.dashboard.monitoring import CONTENT_TYPE_LATEST, metrics_text

__all__ = ["make_app"]

STATIC = Path(__file__).parent / "static"

Told = Annotated[int, Query(ge=0, le=10**12)]
Generation = Annotated[str, Query(max_length=60)]


class _Files(StaticFiles):
    """The page's own files: asked about each time, so that an upgraded page does not meet an old script."""

    def file_response(self, *arguments: Any, **options: Any) -> Response:
        response = super().file_response(*arguments, **options)
        response.headers["cache-control"] = "no-cache"
        return response


def make_app(home: Home, *, token: str | None = None, names: Iterable[str] = ()) -> FastAPI:
    """Application that shows one home.

    Parameters
    ----------
    home : Home
    token : str or None
        Bearer token of everything but the page's own files.
    names : iterable of str
        Names beside localhost by which the page may be asked for.
    """
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, title="autoflip_secure")
    app.add_middleware(GZipMiddleware, minimum_size=2000, compresslevel=5)
    app.add_middleware(Guard, token=token, names=tuple(names))  # added last, asked first
    app.mount("/static", _Files(directory=STATIC))

    @app.get("/")
    def page() -> Response:
        return FileResponse(STATIC / "index.html", headers={"cache-control": "no-cache"})

    @app.get("/api/overview")
    def overview() -> dict[str, Any]:
        return home.overview()

    @app.get("/api/runs/{name}")
    def run(name: str, generation: Generation = "", rounds: Told = 0, events: Told = 0) -> dict[str, Any]:
        found = home.run(name)
        if found is None:
            raise HTTPException(404, "there is no such run")
        return found.page(generation, rounds, events)

    @app.get("/api/silo")
    def silo(generation: Generation = "", messages: Told = 0) -> dict[str, Any]:
        if home.silo is None:
            raise HTTPException(404, "this is no silo's home")
        return home.silo.page(generation, messages)

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(metrics_text(home), media_type=CONTENT_TYPE_LATEST)

    return app
