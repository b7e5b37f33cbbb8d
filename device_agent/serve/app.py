"""What a worker answers for its one deployment."""

from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from device_agent.samples.sampler import Sampler
from device_agent.serve import codec, coding, predict
from device_agent.serve.http import (
    Head,
    HttpError,
    PassOn,
    Request,
    Response,
    Route,
    Serve,
    json_response,
)
from device_agent.serve.model import EngineHungError, Ran, ServedModel
from device_agent.serve.peers import Peer
from device_agent.serve.routes import Target, target_of
from device_agent.serve.sequences import Sequence, sequence_of
from edgekit.errors import UnfamiliarError
from edgekit.manifest import TensorSpec
from edgekit.tensors import V2_DTYPES, Array
from edgekit.transforms import JSON, postprocess, prepare

# JSON spells a number in up to some 25 characters; an image or other raw input may be larger than its tensor.
_JSON_BYTES_PER_BYTE = 8
_SMALLEST_BODY_LIMIT = 1 << 20
_RAW_BODY_LIMIT = 16 << 20
# Bodies of all requests at once: enough for the largest twice over, and on small models for many.
_LEAST_TOTAL_BYTES = 64 << 20
# Reading this much, or unfolding anything, takes long enough to be done beside the engine.
_COSTLY_BYTES = 256 * 1024


class WorkerApp:
    """Routes and handlers. `give_back` takes requests that are not this worker's; `on_hung` ends the process."""

    def __init__(
        self,
        deployment: str,
        deployments: tuple[str, ...],
        digest: str,
        model: ServedModel,
        sampler: Sampler,
        *,
        give_back: Callable[[int, bytes], None],
        on_hung: Callable[[], None],
        pass_on: Callable[[Request], Awaitable[Response]] | None = None,
    ) -> None:
        self._deployment = deployment
        self._deployments = deployments
        self._digest = digest
        self._model = model
        self._sampler = sampler
        self._give_back = give_back
        self._on_hung = on_hung
        self._pass_on = pass_on
        self._states = {pair.output for pair in model.manifest.state}
        dense = predict.input_bytes(model.manifest) * _JSON_BYTES_PER_BYTE + 64 * 1024
        self._infer_limit = max(dense, _SMALLEST_BODY_LIMIT)
        self._predict_limit = max(
            dense, _RAW_BODY_LIMIT if model.manifest.preprocess else _SMALLEST_BODY_LIMIT
        )

    @property
    def total_bytes(self) -> int:
        """What bodies may take in this process, all together."""
        return max(_LEAST_TOTAL_BYTES, 2 * max(self._infer_limit, self._predict_limit))

    def route(self, head: Head, _peer: Peer) -> Route:
        target = target_of(head.path, self._deployments)
        if not target.is_workers or target.deployment != self._deployment:
            return PassOn(self._give_back)
        if head.method != target.method and not (head.method == "HEAD" and target.method == "GET"):
            raise HttpError(405, f"{head.path} takes {target.method}", allow=target.method)
        have = self._model.manifest.version
        if target.version not in ("", have):
            raise HttpError(
                404, f"{self._deployment!r} has no version {target.version!r} here; it runs {have}"
            )
        return self._serve(target)

    def _serve(self, target: Target) -> Route:
        if target.kind == "infer":
            return Serve(self._packing(self._infer), self._infer_limit, is_admitted=True)
        if target.kind == "predict":
            return Serve(self._packing(self._predict), self._predict_limit, is_admitted=True)
        return Serve(self._ready if target.kind == "model-ready" else self._metadata)

    def _packing(
        self, handle: Callable[[Request], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            try:
                response = await handle(request)
            except EngineHungError:
                self._on_hung()
                raise
            except UnfamiliarError:
                if self._pass_on is None:
                    raise
                return await self._pass_on(request)
            if coding.is_worth_packing(request.head, response):
                return await self._model.beside(lambda: coding.packed(response))
            return response

        return answer

    async def _ready(self, _request: Request) -> Response:
        return json_response(200, {"name": self._deployment, "ready": True})

    async def _metadata(self, _request: Request) -> Response:
        manifest = self._model.manifest
        return json_response(
            200,
            {
                "name": self._deployment,
                "versions": [manifest.version],
                "platform": manifest.engine.name,
                "inputs": [_described(spec) for spec in manifest.admitted],
                "outputs": [_described(spec) for spec in manifest.given],
                "parameters": {
                    "model": manifest.name,
                    "profile": manifest.profile,
                    "digest": self._digest,
                    "recipe": manifest.recipe,
                    **({"buckets": manifest.buckets.sizes} if manifest.buckets else {}),
                },
            },
        )

    async def _infer(self, request: Request) -> Response:
        model = self._model

        def read() -> tuple[codec.InferRequest, dict[str, Array], Sequence]:
            plain = self._plain(request, self._infer_limit)
            parsed, tensors = codec.read_request(plain, model.input_values)
            codec.check_outputs(parsed, model.manifest)
            return parsed, tensors, sequence_of(parsed.parameters)

        def use(found: tuple[codec.InferRequest, dict[str, Array], Sequence]) -> Response:
            parsed, tensors, sequence = found
            ran = self._ran(_Given(tensors, None), sequence)
            return codec.write_answer(
                parsed,
                ran.outputs,
                model=self._deployment,
                version=model.manifest.version,
                parameters=ran.parameters,
            )

        assert request.ticket is not None
        # Raw tensors need no reading.
        is_raw = codec.HEADER_LENGTH in request.head.headers
        is_costly = len(request.body) > _COSTLY_BYTES and not is_raw
        return await model.do(request.ticket, read, use, is_costly=is_costly or _is_packed(request))

    async def _predict(self, request: Request) -> Response:
        model, manifest = self._model, self._model.manifest

        def read() -> tuple[list[_Given], Sequence]:
            plain = self._plain(request, self._predict_limit)
            samples, sequence = predict.read_body(plain.head, plain.body, manifest)
            # What came is let go at once where nobody may keep it.
            is_kept = self._sampler.is_on or model.feed is not None
            return [
                _Given(prepare(manifest.admitted, manifest.preprocess, raw), raw if is_kept else None)
                for raw in samples
            ], sequence

        def use(found: tuple[list[_Given], Sequence]) -> Response:
            samples, sequence = found
            answers = [self._predicted(given, step) for given, step in each_step(samples, sequence)]
            told = answers[0] if len(answers) == 1 else {"samples": answers}
            named = {"deployment": self._deployment, "model": manifest.name, "version": manifest.version}
            return Response(200, msgspec.json.encode({**named, **told}) + b"\n")

        assert request.ticket is not None
        is_unfolding = predict.KINDS.get(request.head.content_type) in ("image", "audio")
        is_costly = is_unfolding or len(request.body) > _COSTLY_BYTES or _is_packed(request)
        return await model.do(request.ticket, read, use, is_costly=is_costly)

    def _ran(self, given: "_Given", sequence: Sequence) -> Ran:
        """The model's answer; the input may become a sample. In the engine's thread."""
        kept, is_raw = (given.inputs, False) if given.raw is None else (given.raw, True)
        try:
            ran = self._model.run(given.inputs, sequence, given.raw)
        except UnfamiliarError:
            self._sampler.offer(kept, {}, is_raw=is_raw, is_flagged=True)
            raise
        self._sampler.offer(kept, ran.outputs, is_raw=is_raw, is_flagged=ran.excess > 0)
        return ran

    def _predicted(self, given: "_Given", sequence: Sequence) -> dict[str, Any]:
        """What the caller is told of one sample; in the engine's thread."""
        ran = self._ran(given, sequence)
        told = {name: value for name, value in ran.outputs.items() if name not in self._states}
        answers = postprocess(self._model.manifest.postprocess, told)
        return {
            "outputs": answers,
            **_headline(answers),
            **({"parameters": ran.parameters} if ran.parameters else {}),
        }

    def _plain(self, request: Request, limit: int) -> Request:
        """The request without a content coding."""
        told = coding.coding_of(request.head)
        if not told:
            return request
        return Request(request.head, coding.decoded(told, request.body, limit), request.ticket)


class _Given(NamedTuple):
    """One sample as the model takes it; as it came too, where a policy may want it."""

    inputs: dict[str, Array]
    raw: dict[str, Array] | None


def each_step(samples: list[_Given], sequence: Sequence) -> Iterator[tuple[_Given, Sequence]]:
    """Samples in order: the first begins the sequence if the request does, the last ends it."""
    for index, given in enumerate(samples):
        is_first, is_last = index == 0, index == len(samples) - 1
        yield given, Sequence(sequence.key, sequence.is_start and is_first, sequence.is_end and is_last)


def _is_packed(request: Request) -> bool:
    return "content-encoding" in request.head.headers


def _headline(answers: Mapping[str, JSON]) -> dict[str, JSON]:
    """`label` and `score` of the first answer where post-processing ranked or judged it."""
    first = next(iter(answers.values()), None)
    best = first[0] if isinstance(first, list) and first else first
    if not isinstance(best, dict):
        return {}
    label = best.get("label", str(best["index"]) if "index" in best else None)
    score = best.get("score", best.get("value"))
    return {key: value for key, value in (("label", label), ("score", score)) if value is not None}


def _described(spec: TensorSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "datatype": V2_DTYPES.get(spec.dtype, spec.dtype.upper()),
        "shape": [-1 if dim is None else dim for dim in spec.shape],
    }
