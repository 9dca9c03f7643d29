"""Forms that stay in memory, and whose every field is one that is known and given once."""

import logging
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from typing import Any

from fastapi import Request, params
from fastapi.responses import Response
from fastapi.routing import APIRoute
from starlette.datastructures import FormData
from starlette.formparsers import MultiPartException, MultiPartParser

from phrase_loc.errors import nearest
from phrase_loc.web.sentences import Refused

logging.getLogger("python_multipart").setLevel(
    logging.CRITICAL
)  # it would tell what was sent, a line for each byte


class InMemoryParser(MultiPartParser):
    """Starlette's parser, which moves files above a megabyte to disk, with that moved off."""

    spool_max_size = 0  # SpooledTemporaryFile reads 0 as "never roll over to a file"
    ended = False

    def on_end(self) -> None:
        """The last boundary was there."""
        self.ended = True

    async def parse(self) -> FormData:
        """The fields; a form that is cut off would lose its last ones silently."""
        form = await super().parse()
        if not self.ended:
            for file in self._files_to_close_on_error:
                file.close()
            raise MultiPartException("It ends before its last boundary; send it again")
        return form


class InMemoryRequest(Request):
    """A request whose form never touches the disk."""

    async def form(self, **_: Any) -> FormData:  # type: ignore[override]
        """The fields of the form, read once."""
        if self._form is None:
            multipart = self.headers.get("content-type", "").lower().startswith("multipart/form-data")
            self._form = await self._multipart() if multipart else FormData()
        return self._form

    async def _multipart(self) -> FormData:
        async with aclosing(self.stream()) as stream:
            parser = InMemoryParser(self.headers, stream, max_files=4, max_fields=16)
            try:
                return await parser.parse()
            except MultiPartException as error:
                raise Refused(400, f"the form cannot be read: {error.message.rstrip('.').lower()}") from None
            except (LookupError, ValueError):  # of an encoding that it claims
                raise Refused(400, "the form cannot be read; send it in UTF-8") from None


class StrictRoute(APIRoute):
    """A route that refuses what it would otherwise overlook: unknown or repeated fields, and queries."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler behind those checks."""
        handle = super().get_route_handler()
        known = [f.alias for f in self.dependant.body_params if isinstance(f.field_info, params.Form)]

        async def handler(request: Request) -> Response:
            asked = InMemoryRequest(request.scope, request.receive)
            if asked.query_params:
                raise Refused(422, f"{self.path} takes nothing after a question mark; send it in the body")
            try:
                if known:
                    _check(await asked.form(), known)
                return await handle(asked)
            finally:
                await asked.close()

        return handler


def _check(form: FormData, known: list[str]) -> None:
    seen: set[str] = set()
    for name, _ in form.multi_items():
        if name not in known:
            raise Refused(422, f"unknown field {name!r}{nearest(name, known)}; known: {', '.join(known)}")
        if name in seen:
            raise Refused(422, f"the field {name} came more than once; send it once")
        seen.add(name)
