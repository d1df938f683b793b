"""Finds the route at a path outside of routing: for the metrics of refused requests, and for hints."""

from collections.abc import Iterable

from starlette.routing import BaseRoute, Match, Mount, Route


class RouteTable:
    """The routes of an application by path."""

    def __init__(self, routes: Iterable[BaseRoute] = ()) -> None:
        """Keep the routes and mounts of `routes`, in their order."""
        self._routes = tuple(route for route in routes if isinstance(route, Route | Mount))

    def template(self, method: str, path: str) -> str | None:
        """Return the template of the route for `method` at `path`, or else for any method, or else None.

        Tries one route after the other, so it is not for requests that are answered.
        """
        scope = {"type": "http", "method": method, "path": path, "root_path": "", "path_params": {}}
        partial: str | None = None
        for route in self._routes:
            match, _ = route.matches(scope)
            if match is Match.FULL:
                return route.path
            if match is Match.PARTIAL and partial is None:
                partial = route.path
        return partial
