"""The body of a request: read up to a limit, and parsed."""

import asyncio
import json
import time

from keras_delta.serving.server.problems import Problem, bad

JSON_TYPES = ("application/json", "text/json")
EXAMPLE = 'Send {"instances": [{"b64": "..."}]}, with each image as base64.'
CURL = "application/x-www-form-urlencoded"  # what `curl -d` says of any text


def check_type(request):
    """Reject content that is declared as something other than JSON.

    TensorFlow Serving's own examples send JSON with `curl -d`, which declares a form.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind and kind not in (*JSON_TYPES, CURL) and not kind.endswith("+json"):
        raise Problem(
            415,
            f"The content type is {kind[:100]!r}. Send JSON, with the header "
            "'Content-Type: application/json' and images as base64.",
        )


async def read(request, limit, deadline):
    """The body, at most `limit` bytes, until `deadline` of `time.monotonic()`."""
    told = request.headers.get("content-length", "")
    if told.isdecimal() and int(told) > limit:
        raise _too_large(limit)
    parts, size = [], 0
    while True:
        try:
            message = await asyncio.wait_for(
                request.receive(), max(deadline - time.monotonic(), 0.001)
            )
        except TimeoutError:
            raise Problem(408, "The request body arrived too slowly.") from None
        if message["type"] == "http.disconnect":
            raise bad("The client disconnected before the body was complete.")
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise _too_large(limit)
        parts.append(part)
        if not message.get("more_body"):
            return b"".join(parts)


def parse(body):
    """A JSON object as a dict; duplicate keys are an error."""
    if not body:
        raise bad(f"The body is empty. {EXAMPLE}")
    try:
        document = json.loads(body, object_pairs_hook=_once)
    except RecursionError:
        raise bad("The JSON is nested too deeply.") from None
    except UnicodeDecodeError:
        raise bad(f"The body is not JSON: it is not UTF-8 text. {EXAMPLE}") from None
    except json.JSONDecodeError as error:
        raise bad(f"The body is not JSON: {error}.") from None
    except ValueError as error:  # such as a number of 5,000 digits
        raise bad(f"The JSON cannot be read: {error}.") from None
    if not isinstance(document, dict):
        raise bad(
            'The JSON is not an object. Send {"instances": [...]} or {"inputs": {...}}.'
        )
    return document


def _once(pairs):
    document = {}
    for key, value in pairs:
        if key in document:
            raise bad(f"The key {key[:100]!r} occurs twice in one object of the JSON.")
        document[key] = value
    return document


def _too_large(limit):
    return Problem(
        413,
        f"The body is larger than {limit / 1e6:g} MB. Send smaller images or fewer at "
        "once.",
    )
