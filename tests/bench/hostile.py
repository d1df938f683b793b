"""The most costly requests that the limits allow, one or more for each route and each parser."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from service.api.documentation.examples import RED_DOT

BODY_BYTES: Final = 20 * 2**20 - 1_024
"""A body just below the default limit."""
AT_ONCE_BYTES: Final = 250_000
"""A body that the service parses on its event loop if it has few values."""
_JSON: Final = "application/json"
_FORM: Final = "multipart/form-data; boundary=B"
_URL_BYTES: Final = 60_000
_HEAD_BYTES: Final = 120_000
_INFER: Final = "/v2/models/demo/infer"
_VERSION: Final = "/v2/models/demo/versions/1"
_SIDE: Final = 64
_MANY: Final = 10_000
"""The default limit of labels."""
_LONG: Final = "a" * _URL_BYTES
_NAMED: Final = (
    ("GET", "/v1/models/{}"),
    ("GET", "/v1/files/{}"),
    ("GET", "/v1/files/{}/content"),
    ("DELETE", "/v1/files/{}"),
    ("GET", "/v1/batches/{}"),
    ("POST", "/v1/batches/{}/cancel"),
    ("GET", "/v2/models/{}"),
    ("GET", "/v2/models/{}/ready"),
    ("GET", "/v2/models/{}/versions/1"),
    ("GET", "/v2/models/{}/versions/1/ready"),
)
_UNNAMED: Final = ("/readyz", "/metrics", "/v1/templates", "/v1/files", "/v2", "/v2/health/live", "/v2/health/ready")


@dataclass(frozen=True)
class Hostile:
    """A request."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""

    @property
    def path(self) -> str:
        """Return the target without its query."""
        return self.target.partition("?")[0]

    def wire(self) -> bytes:
        """Return the request as it goes over the wire."""
        lines = [f"{self.method} {self.target} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(self.body)}"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        return "\r\n".join([*lines, "", ""]).encode() + self.body


def _of(kind: str, body: bytes, target: str, method: str = "POST") -> Hostile:
    return Hostile(method, target, (("Content-Type", kind),), body)


def _filled(target: str, head: str, unit: str, tail: str, method: str = "POST") -> Callable[[int], Hostile]:
    """Return a maker of JSON: `unit` repeated between `head` and `tail`, up to the size."""

    def make(size: int) -> Hostile:
        count = (size - len((head + tail).encode())) // len(unit.encode())
        return _of(_JSON, (head + unit * count + tail).encode(), target, method)

    return make


def _listed(target: str, head: str, unit: str, tail: str, method: str = "POST") -> Callable[[int], Hostile]:
    return _filled(target, f"{head}{unit}", f",{unit}", tail, method)


def _json(target: str, content: Callable[[int], object], method: str = "POST") -> Callable[[int], Hostile]:
    return lambda size: _of(_JSON, json.dumps(content(size), ensure_ascii=False).encode(), target, method)


def _form(target: str, name: str, content: Callable[[int], str]) -> Callable[[int], Hostile]:
    """Return a maker of a form with one field."""
    return lambda size: _of(_FORM, _part(name, content(size)) + b"--B--\r\n", target)


def _many_parts(target: str, name: str) -> Callable[[int], Hostile]:
    part = _part(name, "a")
    return lambda size: _of(_FORM, part * (size // len(part)) + b"--B--\r\n", target)


def _part(name: str, content: str) -> bytes:
    return f'--B\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{content}\r\n'.encode()


def _head(method: str, target: str, *headers: tuple[str, str]) -> Callable[[int], Hostile]:
    return lambda _: Hostile(method, target, headers)


def _numbered(count: int, each: str) -> list[str]:
    # All different, or they are refused at the second.
    return [f"{number}{each}" for number in range(count)]


def _names(size: int) -> dict[str, int]:
    return {f"{number:x}": 1 for number in range(size // 14)}


def _pixels(size: int, each: object, chars: int) -> dict[str, object]:
    count = size // chars
    shape = [max(1, count // _SIDE**2), _SIDE, _SIDE, 3]
    return {"inputs": [{"name": "image", "datatype": "UINT8", "shape": shape, "data": [each] * count}]}


def _described(size: int) -> dict[str, object]:
    count = min(100_000, size // 80)
    return {"labels": [{"label": str(number), "descriptions": [f"{number} b"]} for number in range(count)]}


def _binary_texts(size: int) -> Hostile:
    text = "é".encode() * (size // 4_200)
    tail = (len(text).to_bytes(4, "little") + text) * 2_048
    tensor = {"name": "text", "datatype": "BYTES", "shape": [2_048], "parameters": {"binary_data_size": len(tail)}}
    head = json.dumps({"inputs": [tensor]}).encode()
    headers = (("Content-Type", "application/octet-stream"), ("Inference-Header-Content-Length", str(len(head))))
    return Hostile("POST", _INFER, headers, head + tail)


REQUESTS: Final[dict[str, Callable[[int], Hostile]]] = {
    "no harm: a picture": lambda size: _of("image/jpeg", bytes(size), "/v1/classify?labels=a"),
    "classify: empty lists": _listed("/v1/classify", '{"image":"aa","labels":[', "[]", "]}"),
    "classify: empty lists, at once": lambda _: _listed("/v1/classify", '{"labels":[', "[]", "]}")(AT_ONCE_BYTES),
    "classify: empty objects": _listed("/v1/classify", '{"image":"aa","labels":[', "{}", "]}"),
    "classify: short texts": _listed("/v1/classify", '{"image":"aa","labels":[', '"a"', "]}"),
    "classify: names": _json("/v1/classify", _names),
    "classify: names, at once": lambda _: _json("/v1/classify", _names)(AT_ONCE_BYTES),
    "classify: escapes": _filled("/v1/classify", '{"image":"', "\\n", '"}'),
    "classify: digits": _listed("/v1/classify", '{"image":"aa","top_k":[', "9" * 4_300, "]}"),
    "classify: digits, at once": lambda _: _listed("/v1/classify", '{"top_k":[', "9" * 4_300, "]}")(AT_ONCE_BYTES),
    "classify: one number": _filled("/v1/classify", '{"top_k":1.', "9", "}"),
    "classify: white space": _filled("/v1/classify", '{"image":', " ", '"aa"}'),
    "classify: emoji": _filled("/v1/classify", '{"image":"', "\N{CAT FACE}", '"}'),
    "classify: an emoji at the end": _filled("/v1/classify", '{"image":"', "abcd", '\N{CAT FACE}"}'),
    "classify: base64": _filled("/v1/classify", '{"labels":["a"],"image":"', "QUJD", '"}'),
    "classify: base64, at once": lambda _: _filled("/v1/classify", '{"image":"', "QUJD", '","labels":["a"]}')(
        AT_ONCE_BYTES
    ),
    "classify: long labels": _json(
        "/v1/classify", lambda size: {"image": "QUJD", "labels": _numbered(10_000, "é" * (size // 22_000))}
    ),
    "classify: marks to be ordered": _json(
        "/v1/classify", lambda size: {"image": "QUJD", "labels": _numbered(size // 4_000, "\u0316\u0301" * 490)}
    ),
    "classify: marks, at once": _json("/v1/classify", lambda _: {"image": "QUJD", "labels": ["\u0316\u0301" * 490]}),
    "classify: one long label": _filled("/v1/classify", '{"image":"QUJD","labels":["', "é", '"]}'),
    "classify: long templates": _json(
        "/v1/classify",
        lambda _: {"image": "QUJD", "labels": _numbered(100, ""), "templates": ["{}" + "a" * 990] * 100},
    ),
    "classify: many labels": _json("/v1/classify", lambda _: {"image": RED_DOT, "labels": _numbered(_MANY, "")}),
    "classify: many parts": _many_parts("/v1/classify", "labels"),
    "classify: a list in a form": _form("/v1/classify", "labels", lambda size: f"[{'[],' * (size // 4)}[]]"),
    "classify: a text in a form": _form("/v1/classify", "labels", lambda size: "a" * (size - 1_000) + "\N{CAT FACE}"),
    "classify: a picture in a form": _form("/v1/classify", "image", lambda size: "\0" * (size - 1_000)),
    "classify: a query": _head("POST", f"/v1/classify?{'a&' * (_URL_BYTES // 2)}", ("Content-Type", "image/png")),
    "classify: labels in a query": _head(
        "POST", f"/v1/classify?{'labels=a&' * (_URL_BYTES // 9)}", ("Content-Type", "image/png")
    ),
    "batch: texts": _listed("/v1/classify/batch", '{"labels":["a"],"images":[', '""', "]}"),
    "batch: numbers": _listed("/v1/classify/batch", '{"labels":["a"],"images":[', "1", "]}"),
    "batch: base64": _json(
        "/v1/classify/batch", lambda size: {"labels": ["a"], "images": ["QUJD" * (size // 1_024)] * 250}
    ),
    "batch: Accept": _head("POST", "/v1/classify/batch", ("Accept", "a," * (_HEAD_BYTES // 2))),
    "batch: an archive": lambda size: _of("application/x-tar", bytes(size), "/v1/classify/batch?labels=a"),
    "batch: many labels": _json(
        "/v1/classify/batch", lambda _: {"images": [RED_DOT] * 8, "labels": _numbered(_MANY, "")}
    ),
    "embeddings: good texts": _json("/v1/embeddings", lambda _: {"input": _numbered(2_048, "")}),
    "embeddings: texts": _listed("/v1/embeddings", '{"input":[', '"a"', "]}"),
    "embeddings: lists": _listed("/v1/embeddings", '{"input":[', "[]", "]}"),
    "embeddings: images": _json(
        "/v1/embeddings", lambda size: {"input": ["data:image/png;base64," + "QUJD" * (size // 1_024)] * 250}
    ),
    "embeddings: long texts": _json("/v1/embeddings", lambda size: {"input": ["é" * (size // 4_100)] * 2_048}),
    "hugging face: numbers": _listed("/", '{"inputs":"aa","parameters":{"candidate_labels":[', "1", "]}}"),
    "hugging face: numbers, at once": lambda _: _listed(
        "/", '{"inputs":"aa","parameters":{"candidate_labels":[', "1", "]}}"
    )(8_000),
    "hugging face: commas": _filled("/", '{"inputs":"aa","parameters":{"candidate_labels":"', ",", '"}}'),
    "hugging face: a model": _json("/models/demo", _names),
    "hugging face: options": _listed("/", '{"inputs":"aa","options":{"a":[', "{}", "]}}"),
    "open inference: numbers": _json(_INFER, lambda size: _pixels(size, 7, 3)),
    "open inference: an unknown version": _json(f"{_VERSION}/infer", lambda size: _pixels(size, 7, 3)),
    "open inference: pixels": _json(_INFER, lambda size: _pixels(size, [1, 2, 3], 11)),
    "open inference: shape": _listed(
        _INFER, '{"inputs":[{"name":"image","datatype":"UINT8","data":[],"shape":[', "1", "]}]}"
    ),
    "open inference: templates": _filled(
        _INFER,
        '{"inputs":[{"name":"text","datatype":"BYTES","shape":[1],"data":["a"]}],"parameters":{"templates":"[[]',
        ",[]",
        ']"}}',
    ),
    "open inference: inputs": _listed(_INFER, '{"inputs":[', "{}", "]}"),
    "open inference: binary texts": _binary_texts,
    "label sets: lists": _listed("/v1/label-sets/a", '{"labels":[', "[]", "]}", "PUT"),
    "label sets: descriptions": _json(
        "/v1/label-sets/a",
        lambda size: {"labels": [{"label": str(n), "descriptions": [1] * 100} for n in range(size // 340)]},
        "PUT",
    ),
    "label sets: objects": _json(
        "/v1/label-sets/a",
        lambda size: {"labels": [{"label": str(n), "descriptions": [""]} for n in range(size // 200)]},
        "PUT",
    ),
    "label sets: described": _json("/v1/label-sets/large", _described, "PUT"),
    "label sets: with labels": _head("GET", "/v1/label-sets/large?include=labels"),
    "label sets: If-Match": _head("DELETE", "/v1/label-sets/a", ("If-Match", "," * _HEAD_BYTES)),
    "label sets: If-None-Match": _head("GET", "/v1/label-sets/a", ("If-None-Match", "," * _HEAD_BYTES)),
    "label sets: a query": _head("GET", f"/v1/label-sets?{'a&' * (_URL_BYTES // 2)}"),
    "batches: names": _json("/v1/batches", lambda size: {"metadata": _names(size)}),
    "batches: a query": _head("GET", f"/v1/batches?{'a&' * (_URL_BYTES // 2)}"),
    "files: many parts": _many_parts("/v1/files", "purpose"),
    "files: lines": _form("/v1/files", "file", lambda size: "\n" * (size - 1_000)),
    "headers: many": _head("GET", "/v1/models", *[("a", "")] * (_HEAD_BYTES // 5)),
    "headers: Content-Type": _head("POST", "/v1/classify", ("Content-Type", f"{_FORM}{';a=b' * (_HEAD_BYTES // 4)}")),
    "headers: X-Request-ID": _head("GET", "/v1/models", ("X-Request-ID", "a" * _HEAD_BYTES)),
    "headers: Authorization": _head("GET", "/v1/models", ("Authorization", f"Bearer {'a' * _HEAD_BYTES}")),
    "headers: Cookie": _head("GET", "/v1/batches", ("Cookie", "a=b;" * (_HEAD_BYTES // 4))),
    "headers: Origin": _head("OPTIONS", "/v1/models", ("Origin", "a" * _HEAD_BYTES)),
    "a query at a probe": _head("GET", f"/livez?{'a&' * (_URL_BYTES // 2)}"),
    "a path": _head("GET", f"/{'a/' * (_URL_BYTES // 2)}"),
    **{f"a long name: {method} {target}": _head(method, target.format(_LONG)) for method, target in _NAMED},
    **{f"a query at {target}": _head("GET", f"{target}?{'a&' * (_URL_BYTES // 2)}") for target in _UNNAMED},
}
"""By a name for the table; called with the size of the body, if it has one."""
